//! Recipes against the reference: the same small PKGBUILDs through makepkg and through rbee, which must come to the same
//! end and the same files, but for the differences that the table states with their reasons.

mod table;

use crate::support::pidns;
use rbee::pkgbuild::{self, Ended, Order, Origin};
use rbee::wire::job::JobEvent;
use rbee::wire::{Code, Failure};
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use table::{CASES, Case, Fate, HEADER};
use tokio_util::sync::CancellationToken;

/// `all` runs makepkg for every case, a number for every so-manieth; it takes a second or two a case.
const ORACLE: &str = "RBEE_ORACLE";
const ORACLE_EVERY: usize = 16;
/// Nobody in particular, for makepkg refuses to run as root.
const OTHER_USER: &str = "65534";
const CONFIGURATION: &str = "CARCH=$(uname -m)\nCHOST=$CARCH-pc-linux-gnu\n\
    DLAGENTS=('file::/usr/bin/curl -gqC - -o %o %u' 'http::/usr/bin/curl -gqfL -o %o %u')\nVCSCLIENTS=('git::git')\n\
    BUILDENV=(!distcc !color !ccache check !sign)\n\
    OPTIONS=(!strip docs libtool staticlibs emptydirs !zipman !purge !debug !lto)\nINTEGRITY_CHECK=(sha256)\n\
    PKGEXT=.pkg.tar\nSRCEXT=.src.tar\n";
const FIXTURES: &str = r#"
umask 022
mkdir hello-1.0
printf '#!/bin/sh\necho hello\n' > hello-1.0/hello.sh; chmod 755 hello-1.0/hello.sh
printf 'read me\n' > hello-1.0/README
ln -s README hello-1.0/link
tar czf hello-1.0.tar.gz hello-1.0
tar cJf hello-1.0.tar.xz hello-1.0
tar cf - hello-1.0 | zstd -q > hello-1.0.tar.zst
tar cjf hello-1.0.tar.bz2 hello-1.0
zip -qry hello-1.0.zip hello-1.0
printf 'notes\n' > notes.txt; gzip -n notes.txt
echo a > a.txt; echo b > b.txt
export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null HOME=/nowhere
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init -q -b main proj
cd proj
echo one > file; git add file; git commit -qm one; git tag -am v1 v1
echo two > file; git commit -qam two
git checkout -qb side; echo side > file; git commit -qam side; git checkout -q main
git tag -am honest honest
git update-ref refs/tags/forged "$(git rev-parse honest)"
"#;

fn rbee() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_rbee"))
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(future)
}

/// Local files of a recipe, from a folder.
struct Folder(PathBuf);

impl Origin for Folder {
    fn file<'a>(
        &'a self,
        name: &'a str,
        to: &'a Path,
    ) -> Pin<Box<dyn Future<Output = Result<(), Failure>> + Send + 'a>> {
        Box::pin(async move {
            let from = self.0.join(name);
            std::fs::copy(&from, to)
                .map(|_| ())
                .map_err(|_| Failure::new(Code::NotFound, format!("the recipe has no file `{name}`")))
        })
    }
}

/// What the recipes name, one copy for each of the two, as git minds whose a repository is.
struct Fixtures {
    folder: tempfile::TempDir,
    http: String,
}

impl Fixtures {
    fn make() -> Fixtures {
        let folder = tempfile::Builder::new().prefix("recipes").tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ours = folder.path().join("rbee");
        std::fs::create_dir(&ours).unwrap();
        let made = Command::new("sh").args(["-ec", FIXTURES]).current_dir(&ours).status().unwrap();
        assert!(made.success(), "making fixtures: {made}");
        let copied =
            Command::new("cp").arg("-a").args([&ours, &folder.path().join("makepkg")]).status().unwrap();
        assert!(copied.success());
        if is_root() {
            let theirs = folder.path().join("makepkg");
            let owner = format!("{OTHER_USER}:{OTHER_USER}");
            let given = Command::new("chown").args(["-R", &owner]).arg(theirs).status().unwrap();
            assert!(given.success());
        }
        let http = serve(ours);
        Fixtures { folder, http }
    }

    fn of(&self, side: &str) -> PathBuf {
        self.folder.path().join(side)
    }

    /// The text with its placeholders filled.
    fn fill(&self, text: &str, side: &str) -> String {
        let fixtures = self.of(side);
        let mut filled = String::new();
        let mut parts = text.split('@');
        filled.push_str(parts.next().unwrap_or_default());
        let rest: Vec<&str> = parts.collect();
        let mut at = 0;
        while at < rest.len() {
            let value = match rest[at] {
                "FIXTURES" => Some(fixtures.to_str().unwrap().to_owned()),
                "HTTP" => Some(format!("http://{}", self.http)),
                "HTTP_ADDRESS" => Some(self.http.replace(':', "/")),
                "COMMIT" => Some(output(
                    Command::new("git")
                        .args(["-c", "safe.directory=*", "rev-parse", "v1^{commit}"])
                        .current_dir(self.of("rbee").join("proj")),
                )),
                word => word.split_once(':').map(|(kind, name)| {
                    let told = output(Command::new(format!("{kind}sum")).arg(name).current_dir(&fixtures));
                    told.split_whitespace().next().unwrap().to_owned()
                }),
            };
            match value {
                Some(value) if at + 1 < rest.len() => {
                    filled.push_str(&value);
                    filled.push_str(rest[at + 1]);
                    at += 2;
                }
                _ => {
                    filled.push('@');
                    filled.push_str(rest[at]);
                    at += 1;
                }
            }
        }
        filled
    }
}

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The smallest server of files; its thread ends with the test.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { continue };
            let mut request = Vec::new();
            let mut byte = [0];
            while !request.ends_with(b"\r\n\r\n") && matches!(stream.read(&mut byte), Ok(1)) {
                request.push(byte[0]);
            }
            let request = String::from_utf8_lossy(&request).into_owned();
            let name =
                request.split_whitespace().nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
            let answer = match std::fs::read(folder.join(name)) {
                Ok(bytes) => [
                    format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                        bytes.len()
                    )
                    .into_bytes(),
                    bytes,
                ]
                .concat(),
                Err(_) => {
                    b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec()
                }
            };
            // A client that has gone has what it wanted.
            let _ = stream.write_all(&answer);
        }
    });
    address
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Paths below a package folder, with what tells two trees apart.
fn files(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(folder) = waiting.pop() {
        for entry in folder.read_dir().into_iter().flatten() {
            let path = entry.unwrap().path();
            let status = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mode = status.permissions().mode() & 0o777;
            let told = if status.is_dir() {
                waiting.push(path);
                format!("folder {mode:o}")
            } else if status.is_symlink() {
                format!("link to {}", std::fs::read_link(&path).unwrap().display())
            } else {
                format!("file {mode:o} {:?}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            };
            found.insert(name, told);
        }
    }
    found
}

type Files = BTreeMap<String, String>;

/// One recipe through rbee: its package's files, or why not.
struct Bench {
    folder: tempfile::TempDir,
    events: Arc<Mutex<Vec<JobEvent>>>,
}

impl Bench {
    fn new() -> Bench {
        Bench { folder: tempfile::tempdir().unwrap(), events: Arc::default() }
    }

    fn order(&self, pkgbuild: &str, origin: &Path, trusted: Vec<String>) -> Order {
        let at = |name: &str| self.folder.path().join(name);
        Order {
            recipe: "x".into(),
            pkgbuild: pkgbuild.into(),
            origin: Arc::new(Folder(origin.to_owned())),
            work: at("builds/1"),
            sources: at("sources"),
            log: at("logs/build.log"),
            processes: at("p"),
            shim: Some(rbee().to_owned()),
            env: std::env::vars().collect(),
            trusted,
            rung_max: None,
        }
    }

    async fn build(&self, order: Order, cancel: &CancellationToken) -> Result<Ended, Failure> {
        let events = self.events.clone();
        let tell = move |event: JobEvent| events.lock().unwrap().push(event);
        pkgbuild::build(order, &tell, cancel, &CancellationToken::new()).await
    }

    /// Everything told, as lines.
    fn told(&self) -> String {
        let events = self.events.lock().unwrap();
        let lines = events.iter().filter_map(|event| match event {
            JobEvent::Narration { action, message, .. } => Some(format!("{action}: {message}")),
            JobEvent::Log { stream, line } => Some(format!("{stream}| {line}")),
            _ => None,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    fn is_clean(&self) -> bool {
        !self.folder.path().join("builds/1").exists()
    }
}

fn through_rbee(case: &Case, fixtures: &Fixtures) -> (Result<Files, Failure>, String) {
    let bench = Bench::new();
    let text = fixtures.fill(&format!("{HEADER}{}\n", case.text), "rbee");
    let trusted =
        vec![format!("http://{}", fixtures.http), format!("file://{}", fixtures.of("rbee").display())];
    let order = bench.order(&text, &fixtures.of("rbee"), trusted);
    let ended = block_on(bench.build(order, &CancellationToken::new()));
    let result = ended.map(|ended| match ended {
        Ended::Built(built) => files(built.folder()),
        Ended::Cancelled(_) => panic!("{}: nobody cancelled", case.name),
    });
    assert!(bench.is_clean(), "{}: the work folder is gone", case.name);
    (result, bench.told())
}

fn through_makepkg(case: &Case, fixtures: &Fixtures) -> (Result<Files, ()>, String) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("b");
    let copied = Command::new("cp").arg("-a").args([&fixtures.of("makepkg"), &place]).status().unwrap();
    assert!(copied.success());
    // A repository beside the PKGBUILD would be taken for the download.
    std::fs::remove_dir_all(place.join("proj")).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let text = fixtures.fill(&format!("{HEADER}{}\n", case.text), "makepkg");
    std::fs::write(place.join("PKGBUILD"), text).unwrap();
    std::fs::write(place.join("x.install"), "").unwrap();
    std::fs::write(place.join("makepkg.conf"), CONFIGURATION).unwrap();
    // makepkg looks for pacman at its start, and asks it nothing here.
    std::fs::write(place.join("pacman"), "#!/bin/sh\nexit 0\n").unwrap();
    std::fs::set_permissions(place.join("pacman"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = match is_root() {
        false => Command::new("makepkg"),
        true => {
            let owner = format!("{OTHER_USER}:{OTHER_USER}");
            assert!(Command::new("chown").args(["-R", &owner]).arg(&place).status().unwrap().success());
            let mut command = Command::new("setpriv");
            command.args(["--reuid", OTHER_USER, "--regid", OTHER_USER, "--clear-groups", "makepkg"]);
            command
        }
    };
    let done = command
        .args(["-d", "-f", "-m", "--noarchive", "--config"])
        .arg(place.join("makepkg.conf"))
        .current_dir(&place)
        .env_clear()
        .env("HOME", &place)
        .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
        .env("PACMAN", place.join("pacman"))
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&[done.stdout, done.stderr].concat()).into_owned();
    let result = done.status.success().then(|| files(&place.join("pkg"))).ok_or(());
    (result, told)
}

fn has(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap().status.success()
}

/// All cases through rbee, held against the table; those that the oracle is asked for through makepkg as well.
#[test]
fn what_makepkg_builds_rbee_builds_and_what_it_refuses_it_refuses() {
    if !pidns::inside(module_path!(), "what_makepkg_builds_rbee_builds_and_what_it_refuses_it_refuses") {
        return;
    }
    let needed = ["git", "zip", "xz", "zstd", "bzip2", "bash"];
    if let Some(missing) = needed.iter().find(|program| !has(program)) {
        return eprintln!("skipped: recipes need {missing} to be made");
    }
    let every = match std::env::var(ORACLE).ok().as_deref() {
        Some("all") => 1,
        Some(number) => number.parse().expect("RBEE_ORACLE is `all` or a number"),
        None => ORACLE_EVERY,
    };
    let oracle = has("makepkg") && has("fakeroot") && has("setpriv");
    if !oracle {
        eprintln!("skipped: the comparison with makepkg: it is not here; the table stands for it");
    }
    let fixtures = Fixtures::make();
    let only = std::env::var("RBEE_RECIPE").ok();
    let mut wrong = Vec::new();
    let mut asked = 0;
    for (number, case) in CASES.iter().enumerate() {
        if only.as_ref().is_some_and(|only| !case.name.contains(only.as_str())) {
            continue;
        }
        let (ours, told) = through_rbee(case, &fixtures);
        let fate = if ours.is_ok() { Fate::Built } else { Fate::Refused };
        let why = ours.as_ref().err().map(ToString::to_string).unwrap_or_default();
        if fate != case.rbee {
            wrong.push(format!(
                "{}: rbee: {fate:?}, the table says {:?}\n{why}\n{told}",
                case.name, case.rbee
            ));
        }
        if only.is_some() {
            println!("{}: {fate:?}\n{why}\n{told}", case.name);
        }
        if !oracle || (number % every != 0 && only.is_none()) {
            continue;
        }
        asked += 1;
        let (theirs, told) = through_makepkg(case, &fixtures);
        let fate = if theirs.is_ok() { Fate::Built } else { Fate::Refused };
        if fate != case.makepkg {
            wrong
                .push(format!("{}: makepkg: {fate:?}, the table says {:?}\n{told}", case.name, case.makepkg));
        }
        if let (Ok(ours), Ok(theirs), None) = (&ours, &theirs, case.difference)
            && ours != theirs
        {
            wrong.push(format!("{}: other files:\nrbee {ours:#?}\nmakepkg {theirs:#?}", case.name));
        }
    }
    println!("{} cases, {asked} of them through makepkg", CASES.len());
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n---\n"));
}
