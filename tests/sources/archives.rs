//! Archives, honest and hostile, through the confined process that unpacks them.

use super::{Fetched, Kept, Scene, Stop, failure};
use rbee::wire::Code;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One member of a tar, made by hand.
struct Member<'a> {
    name: &'a [u8],
    kind: u8,
    link: &'a [u8],
    mode: u32,
    data: &'a [u8],
}

const FILE: Member<'static> = Member { name: b"f", kind: b'0', link: b"", mode: 0o644, data: b"" };

impl Member<'_> {
    fn header(&self, size: u64) -> [u8; 512] {
        let mut block = [0; 512];
        block[..self.name.len()].copy_from_slice(self.name);
        block[100..108].copy_from_slice(format!("{:07o}\0", self.mode).as_bytes());
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[136..148].copy_from_slice(b"14000000000\0");
        block[156] = self.kind;
        block[157..157 + self.link.len()].copy_from_slice(self.link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.header(self.data.len() as u64).to_vec();
        bytes.extend(self.data);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }
}

fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn tar(members: &[Member<'_>]) -> Vec<u8> {
    let mut bytes: Vec<u8> = members.iter().flat_map(Member::bytes).collect();
    bytes.extend([0; 1024]);
    bytes
}

fn pax(records: &[(&str, &[u8])], kind: u8) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        data.extend([length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat());
    }
    Member { name: b"pax", kind, data: &data, ..FILE }.bytes()
}

/// Unpacks one archive of that name in a folder that has a witness beside it.
async fn unpack(name: &str, bytes: &[u8]) -> (Scene, Result<PathBuf, Stop>) {
    let scene = Scene::new(&[]);
    let outcome = unpack_in(&scene, name, bytes).await;
    (scene, outcome)
}

async fn unpack_in(scene: &Scene, name: &str, bytes: &[u8]) -> Result<PathBuf, Stop> {
    let path = scene.path("recipe").join(name);
    std::fs::write(&path, bytes).unwrap();
    std::fs::create_dir_all(scene.path("work")).unwrap();
    std::fs::write(scene.path("work/witness"), "untouched").unwrap();
    scene.unpack("work", &[Fetched { name: name.into(), kept: Kept::File(path) }], &[]).await
}

/// It is refused with these words, and nothing lies outside.
async fn is_refused(what: &str, name: &str, bytes: &[u8], words: &str) {
    let (scene, outcome) = unpack(name, bytes).await;
    let failed = failure(outcome);
    assert_eq!(failed.code, Code::RecipeInvalid, "{what}: {failed:?}");
    assert!(failed.message.contains(words), "{what}: {}", failed.message);
    assert!(failed.message.contains(name), "{what}: {}", failed.message);
    let mut beside: Vec<_> = scene
        .path("work")
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    beside.sort();
    assert_eq!(beside, ["src", "unpack.json", "witness"], "{what}");
    assert_eq!(std::fs::read_to_string(scene.path("work/witness")).unwrap(), "untouched", "{what}");
    assert!(!Path::new("/tmp/rbee-evil").exists(), "{what}");
}

#[tokio::test]
async fn members_that_lead_out_are_refused() {
    let file = |name: &'static [u8]| tar(&[Member { name, data: b"evil", ..FILE }]);
    let link = |kind, name: &'static [u8], link: &'static [u8]| Member { name, kind, link, ..FILE };
    let evil = Member { name: b"d/witness", data: b"evil", ..FILE };
    let corpus: Vec<(&str, Vec<u8>, &str)> = vec![
        ("absolute", file(b"/tmp/rbee-evil"), "absolute"),
        ("up", file(b"../witness"), "leads out"),
        ("down and up", file(b"a/../../witness"), "leads out"),
        ("backslashes", file(b"..\\witness"), "leads out"),
        ("drive", file(b"C:\\x"), "absolute"),
        ("symlink, absolute", tar(&[link(b'2', b"l", b"/etc/passwd")]), "leads out"),
        ("symlink, up", tar(&[link(b'2', b"l", b"../witness")]), "leads out"),
        ("symlink, deep", tar(&[link(b'2', b"a/l", b"../../witness")]), "leads out"),
        ("symlink, zigzag", tar(&[link(b'2', b"a/l", b"b/../../..")]), "goes up again"),
        (
            "links over links",
            tar(&[link(b'2', b"a/b/up", b"../.."), link(b'2', b"out", b"a/b/up/../..")]),
            "goes up again",
        ),
        ("write through a link", tar(&[link(b'2', b"d", b"."), evil]), "written through"),
        (
            "folder through a link",
            tar(&[link(b'2', b"d", b"."), Member { name: b"d/x/", kind: b'5', ..FILE }]),
            "written through",
        ),
        ("file, then link", tar(&[FILE, link(b'2', b"f", b"x")]), "replace"),
        ("link, then file", tar(&[link(b'2', b"f", b"x"), FILE]), "replace"),
        ("folder, then file", tar(&[Member { name: b"f/", kind: b'5', ..FILE }, FILE]), "replace"),
        ("below a file", tar(&[FILE, Member { name: b"f/x", ..FILE }]), "which is a file"),
        ("hard link, absolute", tar(&[link(b'1', b"l", b"/etc/passwd")]), "leads out"),
        ("hard link, up", tar(&[link(b'1', b"l", b"../witness")]), "leads out"),
        ("hard link to nothing", tar(&[link(b'1', b"l", b"none")]), "no file"),
        ("hard link to a link", tar(&[link(b'2', b"s", b"x"), link(b'1', b"l", b"s")]), "no file"),
        ("hard link through a link", tar(&[link(b'2', b"d", b"."), link(b'1', b"l", b"d/x")]), "no file"),
        ("device", tar(&[link(b'3', b"n", b"")]), "character device"),
        ("block device", tar(&[link(b'4', b"n", b"")]), "block device"),
        ("pipe", tar(&[link(b'6', b"n", b"")]), "named pipe"),
        ("sparse", tar(&[link(b'S', b"n", b"")]), "sparse"),
        ("unknown", tar(&[link(b'Z', b"n", b"")]), "unknown type"),
        ("nameless", file(b"."), "no name"),
        ("deep", file(&[b"a/".repeat(49), b"x".to_vec()].concat().leak()[..]), "folders deep"),
        ("long component", [pax(&[("path", &[b'x'; 256])], b'x'), file(b"f")].concat(), "255"),
        ("pax, up", [pax(&[("path", b"../witness")], b'x'), file(b"f")].concat(), "leads out"),
        ("pax, NUL", [pax(&[("path", b"a\0b")], b'x'), file(b"f")].concat(), "NUL"),
        (
            "pax, link",
            [pax(&[("linkpath", b"/etc")], b'x'), tar(&[link(b'2', b"l", b"ok")])].concat(),
            "leads out",
        ),
        ("pax, sparse", [pax(&[("GNU.sparse.major", b"1")], b'x'), file(b"f")].concat(), "sparse"),
        ("pax, for all", [pax(&[("path", b"x")], b'g'), file(b"f")].concat(), "for all members"),
        (
            "GNU long name, up",
            [Member { name: b"L", kind: b'L', data: b"../witness\0", ..FILE }.bytes(), file(b"f")].concat(),
            "leads out",
        ),
        (
            "data after a link",
            [Member { kind: b'2', link: b"x", ..FILE }.header(512).to_vec(), file(b"g")].concat(),
            "has data",
        ),
        ("size beyond the end", [FILE.header(1 << 32).to_vec(), vec![0; 512]].concat(), "damaged"),
        (
            "a huge extended header",
            [FILE.bytes(), Member { kind: b'x', ..FILE }.header(1 << 32).to_vec()].concat(),
            "damaged",
        ),
        ("cut in a header", tar(&[FILE])[..700].to_vec(), "damaged"),
        ("a wrong sum", [FILE.bytes(), vec![1; 512]].concat(), "damaged"),
    ];
    for (what, bytes, words) in corpus {
        // A name in a header has a hundred bytes; deeper needs more of them.
        let limit = if what == "deep" { 40 } else { 128 };
        if what == "deep" {
            let mut scene = Scene::new(&[]);
            scene.limits.unpacked.depth_max = limit;
            let failed = failure(unpack_in(&scene, "a.tar", &bytes).await);
            assert!(failed.message.contains(words), "{}", failed.message);
            continue;
        }
        is_refused(what, "a.tar", &bytes, words).await;
    }
}

#[tokio::test]
async fn what_archives_may_do_comes_out_right() {
    let members = [
        Member { name: b"d/", kind: b'5', mode: 0o777, ..FILE },
        Member { name: b"d/run", mode: 0o6777, data: b"#!/bin/sh\n", ..FILE },
        Member { name: b"d/secret", mode: 0o600, data: b"s", ..FILE },
        Member { name: b"d/up", kind: b'2', link: b"../top", ..FILE },
        Member { name: b"top", data: b"first", ..FILE },
        Member { name: b"top", data: b"second", ..FILE },
        Member { name: b"twin", kind: b'1', link: b"top", ..FILE },
        Member { name: b"system-a\\x2db.slice", ..FILE },
        Member { name: b"made/on/the/way", ..FILE },
        Member { name: b"old/", kind: b'0', ..FILE },
    ];
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(200));
    let with_pax = pax(&[("path", long.as_bytes()), ("mtime", b"1000000000.5")], b'x');
    let global = pax(&[("comment", b"a commit")], b'g');
    let bytes = [global, members.iter().flat_map(Member::bytes).collect(), with_pax, tar(&[FILE])].concat();
    let (_scene, outcome) = unpack("a.tar", &bytes).await;
    let src = outcome.unwrap();
    let mode = |name: &str| src.join(name).symlink_metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("d"), mode("d/run"), mode("d/secret")), (0o755, 0o755, 0o600));
    assert_eq!(
        std::fs::read_to_string(src.join("d/up")).unwrap(),
        "second",
        "a later member of one name wins"
    );
    assert_eq!(src.join("twin").metadata().unwrap().ino(), src.join("top").metadata().unwrap().ino());
    assert!(src.join("old").is_dir() && src.join("made/on/the/way").is_file());
    assert!(src.join("system-a\\x2db.slice").is_file());
    let named = src.join(&long).metadata().unwrap();
    assert_eq!((named.mtime(), named.mtime_nsec()), (1_000_000_000, 500_000_000));
    for name in ["d", "d/run"] {
        assert_eq!(src.join(name).metadata().unwrap().mtime(), 0o14000000000, "{name}");
    }
    assert!(src.join("a.tar").symlink_metadata().unwrap().is_file(), "the source itself is there, too");
}

#[tokio::test]
async fn a_file_that_has_other_names_is_replaced_and_not_written_to() {
    let scene = Scene::new(&[]);
    let twin = tar(&[
        Member { name: b"twin", kind: b'1', link: b"first.txt", ..FILE },
        Member { name: b"twin", data: b"evil", ..FILE },
    ]);
    for (name, bytes) in [("first.txt", b"first".as_slice()), ("b.tar", &twin)] {
        std::fs::write(scene.path("recipe").join(name), bytes).unwrap();
    }
    std::fs::create_dir(scene.path("work")).unwrap();
    let fetched = ["first.txt", "b.tar"]
        .map(|name| Fetched { name: name.into(), kept: Kept::File(scene.path("recipe").join(name)) });
    let src = scene.unpack("work", &fetched, &[]).await.unwrap();
    assert_eq!(std::fs::read_to_string(src.join("first.txt")).unwrap(), "first");
    assert_eq!(std::fs::read_to_string(src.join("twin")).unwrap(), "evil");
    std::fs::write(src.join("first.txt"), "changed by a build").unwrap();
    assert_eq!(std::fs::read_to_string(scene.path("recipe/first.txt")).unwrap(), "first");
}

#[tokio::test]
async fn bombs_end_at_their_limits() {
    let zeros = vec![0; 300 << 20];
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&zeros).unwrap();
    is_refused("ratio", "bomb.gz", &gzip.finish().unwrap(), "bomb").await;

    let mut scene = Scene::new(&[]);
    scene.limits.unpacked.members_max = 10;
    let many: Vec<Vec<u8>> = (0..11).map(|n| format!("f{n}").into_bytes()).collect();
    let members: Vec<_> = many.iter().map(|name| Member { name, ..FILE }).collect();
    let failed = failure(unpack_in(&scene, "a.tar", &tar(&members)).await);
    assert!(failed.message.contains("more than 10 members"), "{}", failed.message);
    scene.limits.unpacked.members_max = 1000;
    scene.limits.unpacked.bytes_max = 64 << 10;
    let failed = failure(unpack_in(&scene, "b.tar", &tar(&[Member { data: &[7; 100 << 10], ..FILE }])).await);
    assert!(failed.message.contains("65536 bytes"), "{}", failed.message);
}

/// A tree packed by the system's own tools, in every form that they have.
#[tokio::test]
async fn what_the_systems_tools_pack_is_unpacked() {
    const PACK: &[(&str, &str)] = &[
        ("a.tar", "tar --format=gnu -cf a.tar tree"),
        ("u.tar", "tar --format=ustar -cf u.tar tree"),
        ("p.tar", "tar --format=pax -cf p.tar tree"),
        ("v.tar", "tar --format=v7 -cf v.tar tree/short"),
        ("a.tar.gz", "tar -czf a.tar.gz tree"),
        ("a.tgz", "tar -czf a.tgz tree"),
        ("named-otherwise", "tar -cJf named-otherwise tree"),
        ("a.tar.bz2", "tar -cjf a.tar.bz2 tree"),
        ("a.tar.xz", "tar -cJf a.tar.xz tree"),
        ("b.tar.xz", "tar -c tree | xz -9 -T2 --block-size=65536 > b.tar.xz"),
        ("a.tar.zst", "tar -c tree | zstd -q > a.tar.zst"),
        ("b.tar.zst", "tar -c tree | zstd -q -19 --check > b.tar.zst"),
        ("two.tar.gz", "tar -c tree > t; { head -c 9000 t | gzip; tail -c +9001 t | gzip; } > two.tar.gz"),
        (
            "two.tar.zst",
            "tar -c tree > t; { head -c 9000 t | zstd -q; tail -c +9001 t | zstd -q; } > two.tar.zst",
        ),
        ("bsd.tar", "bsdtar --format=pax -cf bsd.tar tree"),
        ("a.zip", "zip -qry a.zip tree"),
        ("b.zip", "bsdtar --format=zip -cf b.zip tree"),
        ("a.jar", "zip -qry a.jar tree"),
    ];
    let scene = Scene::new(&[]);
    let tree = scene.path("tree");
    let long = "a-name-that-is-longer-than-a-header-has-room-for-".repeat(4);
    std::fs::create_dir_all(tree.join("short")).unwrap();
    std::fs::create_dir_all(tree.join("sub").join(&long)).unwrap();
    std::fs::write(tree.join("short/file"), "short").unwrap();
    std::fs::write(tree.join("sub").join(&long).join("x"), "deep").unwrap();
    std::fs::write(tree.join("run.sh"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(tree.join("run.sh"), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(tree.join("noise"), &super::noise()[..200_000]).unwrap();
    std::os::unix::fs::symlink("short/file", tree.join("link")).unwrap();
    for (name, command) in PACK {
        let packed = Command::new("sh")
            .args(["-c", command])
            .current_dir(scene.dir.path())
            .stderr(Stdio::null())
            .status();
        // ustar has no room for the long name: the archive lacks it, and tar says so.
        if !packed.unwrap().success() && *name != "u.tar" {
            eprintln!("skipped: {name}: `{command}` does not run here");
            continue;
        }
        let work = format!("work-{name}");
        std::fs::create_dir(scene.path(&work)).unwrap();
        let fetched = [Fetched { name: (*name).into(), kept: Kept::File(scene.path(name)) }];
        let src = scene.unpack(&work, &fetched, &[]).await.unwrap_or_else(|stop| panic!("{name}: {stop:?}"));
        assert_eq!(std::fs::read_to_string(src.join("tree/short/file")).unwrap(), "short", "{name}");
        if !matches!(*name, "u.tar" | "v.tar") {
            let compared = Command::new("diff")
                .args(["-r", "--no-dereference"])
                .arg(&tree)
                .arg(src.join("tree"))
                .output()
                .unwrap();
            assert!(compared.status.success(), "{name}: {}", String::from_utf8_lossy(&compared.stdout));
            let run = src.join("tree/run.sh").metadata().unwrap();
            assert_eq!(run.permissions().mode() & 0o777, 0o755, "{name}");
            let age = run.mtime() - tree.join("run.sh").metadata().unwrap().mtime();
            // zip has local time, to two seconds.
            assert!(age == 0 || name.ends_with(".zip") || name.ends_with(".jar"), "{name}: {age} s");
        }
        std::fs::remove_file(scene.path(name)).unwrap();
    }
}

#[tokio::test]
async fn what_is_no_archive_or_not_to_be_unpacked_is_put_there_as_it_is() {
    let scene = Scene::new(&[]);
    let archive = tar(&[FILE]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(b"plain text").unwrap();
    let gzip = gzip.finish().unwrap();
    let files: [(&str, &[u8]); 6] = [
        ("fix.patch", b"--- a\n+++ b\n"),
        ("empty", b""),
        ("kept.tar", &archive),
        ("one.txt.gz", &gzip),
        ("one.data", &gzip),
        ("broken.gz.txt", b"\x1f\x8b\x08 and then nothing"),
    ];
    std::fs::create_dir(scene.path("work")).unwrap();
    let fetched = files.map(|(name, bytes)| {
        let path = scene.path("recipe").join(name);
        std::fs::write(&path, bytes).unwrap();
        Fetched { name: name.into(), kept: Kept::File(path) }
    });
    let src = scene.unpack("work", &fetched, &["kept.tar"]).await.unwrap();
    for (name, bytes) in files {
        assert_eq!(std::fs::read(src.join(name)).unwrap(), bytes, "{name}");
    }
    assert_eq!(std::fs::read_to_string(src.join("one.txt")).unwrap(), "plain text");
    assert!(!src.join("f").exists() && !src.join("one").exists() && !src.join("broken.gz").exists());
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_said() {
    is_refused("7z", "a.7z", b"7z\xbc\xaf\x27\x1c\0\x04", "noextract").await;
    is_refused("deb", "a.deb", b"!<arch>\ndebian-binary", "ar archive").await;
    is_refused("lz4", "a.tar.lz4", b"\x04\x22\x4d\x18xxxx", "lz4").await;
    is_refused("a broken gz", "a.gz", b"\x1f\x8b\x08 and then nothing at all", "damaged").await;
    is_refused("a broken zip", "a.zip", b"PK\x03\x04 and then nothing at all", "damaged").await;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    gzip.write_all(&tar(&[Member { data: &super::noise()[..100_000], ..FILE }])).unwrap();
    let mut cut = gzip.finish().unwrap();
    cut.truncate(cut.len() - 2000);
    is_refused("cut", "a.tar.gz", &cut, "damaged").await;
}

#[tokio::test]
async fn hostile_zips_are_refused() {
    use zip::write::SimpleFileOptions;
    type Writer = zip::ZipWriter<std::io::Cursor<Vec<u8>>>;
    let make = |fill: &dyn Fn(&mut Writer)| {
        let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        fill(&mut writer);
        writer.finish().unwrap().into_inner()
    };
    let plain = SimpleFileOptions::default();
    let file = |name: &'static str| {
        make(&move |writer| {
            writer.start_file(name, plain).unwrap();
            writer.write_all(b"evil").unwrap();
        })
    };
    // The writer has scruples of its own about names: what it would change is written over in place.
    let renamed = |from: &'static str, to: &'static str| {
        let bytes = file(from);
        assert_eq!(from.len(), to.len());
        let mut text = bytes;
        for at in 0..text.len() - from.len() {
            if &text[at..at + from.len()] == from.as_bytes() {
                text[at..at + from.len()].copy_from_slice(to.as_bytes());
            }
        }
        text
    };
    is_refused("up", "a.zip", &renamed("xx/witness", "../witness"), "leads out").await;
    is_refused("absolute", "a.zip", &renamed("xtmp/rbee-evil", "/tmp/rbee-evil"), "absolute").await;
    is_refused("backslashes", "a.zip", &renamed("a/b", "a\\b"), "leads out").await;
    let link = |target: &'static str| make(&move |writer| writer.add_symlink("l", target, plain).unwrap());
    is_refused("link", "a.zip", &link("../witness"), "leads out").await;
    is_refused("absolute link", "a.zip", &link("/etc/passwd"), "leads out").await;
    let through = make(&|writer| {
        writer.add_symlink("d", ".", plain).unwrap();
        writer.start_file("d/x", plain).unwrap();
    });
    is_refused("through", "a.zip", &through, "written through").await;
    let twins = {
        let mut bytes = make(&|writer| {
            writer.start_file("aa", plain).unwrap();
            writer.start_file("ab", plain).unwrap();
        });
        for at in 0..bytes.len() - 2 {
            if &bytes[at..at + 2] == b"ab" {
                bytes[at + 1] = b'a';
            }
        }
        bytes
    };
    is_refused("twins", "a.zip", &twins, "twice").await;
    let mut wrong = file("f");
    let at = wrong.windows(4).position(|window| window == b"evil");
    if let Some(at) = at {
        wrong[at] = b'E';
        is_refused("a wrong sum", "a.zip", &wrong, "damaged").await;
    }
}
