//! The catalog from both ends: what `rbee catalog serve` answers, what a node believes of a catalog, the recipes in the tree,
//! the source that the program carries, and how the keeper shows all that.

use crate::support::node::{Answer, Daemon, Place, alone};
use rbee::catalog::server::ROUTES;
use rbee::catalog::{ARCHIVE, BUILT_IN, Catalog, archive_name};
use rbee::http::client;
use rbee::pkgbuild::Origin as _;
use rbee::wire::{Code, VERSION};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};

/// The very file that build.rs packs with.
#[path = "../src/catalog/archive.rs"]
mod archive;

const KEY: &str = "catalog-key-0123456789";
const CPU: &str = "llm-worker-rbee-cpu";
/// What every client of a catalog reads.
const FIELDS: [&str; 21] = [
    "id",
    "implementation",
    "worker_type",
    "version",
    "platforms",
    "architectures",
    "name",
    "description",
    "license",
    "pkgbuild_url",
    "build_system",
    "source",
    "build",
    "depends",
    "makedepends",
    "binary_name",
    "install_path",
    "supported_formats",
    "max_context_length",
    "supports_streaming",
    "supports_batching",
];

fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(place: &Place, args: &[&str]) -> Daemon {
    Daemon::start(place, "catalog serve", args)
}

fn ask(method: &str, daemon: &Daemon, path: &str, etag: Option<&str>) -> Answer {
    let mut request = client::request(method, path, rbee::http::reply::empty()).unwrap();
    if let Some(etag) = etag {
        request.headers_mut().insert("if-none-match", etag.parse().unwrap());
    }
    daemon.request(request)
}

fn header<'a>(answer: &'a Answer, name: &str) -> &'a str {
    answer.headers.get(name).map_or("", |value| value.to_str().unwrap())
}

fn ids(listing: &Value) -> Vec<String> {
    let ids = listing["workers"].as_array().unwrap().iter();
    ids.map(|entry| entry["id"].as_str().unwrap().to_owned()).collect()
}

fn text(answer: &Answer) -> String {
    String::from_utf8(answer.body.to_vec()).unwrap()
}

fn asynchronously<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

// ── Serving ──────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn every_answer_has_all_fields_and_a_tag_that_saves_sending_it_again() {
    alone(|| {
        let place = Place::new();
        let daemon = serve(&place, &[]);
        assert_eq!(daemon.get("/health").json()["status"], "ok");
        let listing = daemon.get("/workers").json();
        assert_eq!(
            ids(&listing),
            ["llama-cpp-server", CPU, "llm-worker-rbee-cuda", "llm-worker-rbee-metal"],
            "models are none"
        );
        for entry in listing["workers"].as_array().unwrap() {
            for field in FIELDS {
                assert!(entry.get(field).is_some(), "{field} of {entry}");
            }
            let id = entry["id"].as_str().unwrap();
            assert_eq!(&daemon.get(&format!("/workers/{id}")).json(), entry);
            let pkgbuild = daemon.get(entry["pkgbuild_url"].as_str().unwrap());
            assert_eq!(header(&pkgbuild, "content-type"), "text/plain; charset=utf-8");
            assert!(text(&pkgbuild).contains(&format!("pkgname={id}\n")));
        }
        let source = format!("/source/{}", archive_name());
        let pkgbuild = format!("/workers/{CPU}/PKGBUILD");
        for path in ["/workers", &format!("/workers/{CPU}"), &pkgbuild, &source] {
            let whole = ask("GET", &daemon, path, None);
            let etag = header(&whole, "etag").to_owned();
            assert_eq!((whole.status, etag.as_str()), (200, format!("\"{}\"", sum(&whole.body)).as_str()));
            for known in [etag.clone(), format!("\"x\", W/{etag}"), "*".to_owned()] {
                let again = ask("GET", &daemon, path, Some(&known));
                assert_eq!((again.status, again.body.len()), (304, 0), "{path} {known}");
                assert_eq!(header(&again, "etag"), etag);
            }
            assert_eq!(ask("GET", &daemon, path, Some("\"other\"")).body, whole.body);
            let head = ask("HEAD", &daemon, path, None);
            assert_eq!((head.status, head.body.len(), header(&head, "etag")), (200, 0, etag.as_str()));
            assert_eq!(header(&head, "content-length"), whole.body.len().to_string(), "{path}");
        }
        assert_eq!(daemon.terminate().code(), Some(0));
    });
}

#[test]
fn what_is_not_there_or_not_allowed_is_said_with_the_right_status() {
    alone(|| {
        let place = Place::new();
        let daemon = serve(&place, &[]);
        let long = format!("/workers/{}", "a".repeat(101));
        for (status, path) in [
            (400, "/workers/Llm"),
            (400, "/workers/..%2f..%2fetc"),
            (400, "/workers/a.b/PKGBUILD"),
            (400, &long),
            (404, "/workers/absent"),
            (404, "/workers/absent/PKGBUILD"),
            (404, "/workers/smollm2-135m-instruct"),
            (404, "/workers/llm-worker-rbee-cpu/files/PKGBUILD"),
            (404, "/workers/llm-worker-rbee-cpu/files/worker.toml"),
            (404, "/workers/llm-worker-rbee-cpu/files/..%2f..%2fCargo.toml"),
            (404, "/workers/llama-cpp-server/files/rbee-0.0.0.tar.gz"),
            (404, "/source/rbee-0.0.0.tar.gz"),
            (404, "/source/..%2f..%2fetc%2fpasswd"),
            (404, "/"),
            (404, "/v1/jobs"),
        ] {
            assert_eq!(daemon.get(path).status, status, "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "PATCH"] {
            for route in ROUTES {
                let path = route.path.replace("{id}", CPU).replace("{name}", "x");
                let answer = ask(method, &daemon, &path, None);
                assert_eq!((answer.status, header(&answer, "allow")), (405, "GET, HEAD"), "{method} {path}");
            }
        }
    });
}

#[test]
fn a_catalog_is_guarded_like_every_daemon() {
    alone(|| {
        let place = Place::new();
        let refused = Daemon::try_start(&place, "catalog serve", &["--listen", "0.0.0.0:0"], &[]);
        let said = refused.err().map(|refused| refused.said).unwrap_or_default();
        assert!(said.contains("--api-key"), "{said}");
        let daemon = serve(&place, &[]);
        let ours = &daemon.address;
        for route in ROUTES {
            let path = route.path.replace("{id}", CPU).replace("{name}", "x");
            for headers in
                ["host: evil.example".to_owned(), format!("host: {ours}\r\norigin: https://evil.example")]
            {
                assert_eq!(daemon.raw(&format!("GET {path} HTTP/1.1\r\n{headers}")), 403, "{path} {headers}");
            }
        }
        drop(daemon);
        let mut locked = Daemon::try_start(&place, "catalog serve", &[], &[("RBEE_API_KEY", KEY)]).unwrap();
        assert_eq!((locked.get("/workers").status, locked.get("/health").status), (401, 200));
        locked.use_key(KEY);
        assert_eq!(locked.get("/workers").status, 200);
    });
}

#[test]
fn a_recipe_built_from_our_source_names_where_it_is_and_its_sum() {
    alone(|| {
        let place = Place::new();
        let daemon = serve(&place, &[]);
        let name = archive_name();
        let source = daemon.get(&format!("/source/{name}"));
        assert_eq!(source.body, ARCHIVE);
        let line = |pkgbuild: &str, start: &str| {
            pkgbuild.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned()
        };
        let pkgbuild = text(&daemon.get(&format!("/workers/{CPU}/PKGBUILD")));
        let address = &daemon.address;
        assert_eq!(line(&pkgbuild, "source="), format!("source=('{name}::http://{address}/source/{name}')"));
        assert_eq!(line(&pkgbuild, "sha256sums="), format!("sha256sums=('{}')", sum(ARCHIVE)));
        assert_eq!(line(&pkgbuild, "_version="), format!("_version={VERSION}"));
        assert!(!pkgbuild.contains("@RBEE"), "{pkgbuild}");
        // Beside the PKGBUILD, for whoever can ask this catalog and nobody else.
        let local = text(&daemon.get(&format!("/workers/{CPU}/PKGBUILD?source=local")));
        assert_eq!(line(&local, "source="), format!("source=('{name}')"));
        assert_eq!(daemon.get(&format!("/workers/{CPU}/files/{name}")).body, ARCHIVE);
    });
}

fn write_recipe(folder: &Path, id: &str, description: &str) {
    let folder = folder.join(id);
    std::fs::create_dir_all(&folder).unwrap();
    let facts = format!(
        "kind = 'worker'\nid = '{id}'\nimplementation = 'test'\nworker_type = 'cpu'\nversion = '1'\n\
         platforms = ['linux']\narchitectures = ['any']\nname = '推論 🐝'\ndescription = '{description}'\n\
         license = 'MIT'\nbuild_system = 'none'\nsource = {{ type = 'archive', url = '' }}\nbuild = {{}}\n\
         binary_name = 'x'\ninstall_path = 'bin/x'\nsupported_formats = []\nsupports_streaming = false\n\
         supports_batching = false\n"
    );
    std::fs::write(folder.join("worker.toml"), facts).unwrap();
    std::fs::write(folder.join("PKGBUILD"), format!("pkgname={id}\npkgver=1\nsource=('fix.patch')\n"))
        .unwrap();
    std::fs::write(folder.join("fix.patch"), "a patch").unwrap();
}

#[test]
fn a_folder_of_recipes_is_read_afresh_and_what_is_wrong_in_it_is_told() {
    alone(|| {
        let place = Place::new();
        let folder = place.path("recipes");
        write_recipe(&folder, "mine", "first");
        write_recipe(&folder, CPU, "of another");
        let daemon = serve(&place, &["--dir", folder.to_str().unwrap()]);
        let description = |id: &str| daemon.get(&format!("/workers/{id}")).json()["description"].clone();
        assert_eq!((description("mine"), description(CPU)), (json!("first"), json!("of another")));
        assert!(ids(&daemon.get("/workers").json()).contains(&"llama-cpp-server".to_owned()));
        assert_eq!(daemon.get("/workers/mine/files/fix.patch").body.as_ref(), b"a patch");

        write_recipe(&folder, "mine", "a longer second one");
        write_recipe(&folder, "new", "new");
        assert_eq!((description("mine"), description("new")), (json!("a longer second one"), json!("new")));

        // A slip in one recipe is told, and hides no other.
        std::fs::write(folder.join("mine/worker.toml"), "kind = 'worker'\nid = 'mine'\nsuports = 1\n")
            .unwrap();
        let listing = daemon.get("/workers").json();
        assert!(!ids(&listing).contains(&"mine".to_owned()) && ids(&listing).contains(&"new".to_owned()));
        assert_eq!(listing["errors"][0]["id"], "mine");
        assert!(listing["errors"][0]["message"].as_str().unwrap().contains("suports"), "{listing}");
        assert_eq!(daemon.get("/workers/mine").failure().code, Code::RecipeInvalid);
        assert!(daemon.log().contains("suports"));

        // What is served lies in the folder, as plain files.
        let beside = place.path("secret");
        std::fs::write(&beside, "secret").unwrap();
        std::os::unix::fs::symlink(&beside, folder.join("new/link")).unwrap();
        std::fs::create_dir(folder.join("new/sub")).unwrap();
        std::fs::write(folder.join("new/.hidden"), "hidden").unwrap();
        let made = Command::new("mkfifo").arg(folder.join("new/pipe")).status();
        assert!(made.is_ok_and(|status| status.success()), "mkfifo makes a pipe");
        for name in ["link", "sub", "pipe", ".hidden", "..%2f..%2fsecret", "absent", "worker.toml"] {
            let answer = daemon.get(&format!("/workers/new/files/{name}"));
            assert!([400, 404].contains(&answer.status), "{name}: {}", answer.status);
            assert!(!text(&answer).contains("secret\""), "{name}");
        }
        assert_eq!(daemon.get("/workers/new/files/fix.patch").status, 200);
    });
}

// ── Asking ───────────────────────────────────────────────────────────────────────────────────────────────────────────

#[test]
fn a_node_gets_the_same_recipe_from_a_catalog_as_from_itself() {
    alone(|| {
        let place = Place::new();
        let daemon = serve(&place, &[]);
        let (own, other) =
            (Catalog::new(None, None).unwrap(), Catalog::new(Some(&daemon.url()), None).unwrap());
        assert_eq!((own.source().as_str(), other.source()), (BUILT_IN, daemon.url()));
        asynchronously(async {
            let (mine, theirs) = (own.list().await, other.list().await);
            assert_eq!((mine.entries, mine.warning), (theirs.entries, theirs.warning));
            // A worker's type stands for our own worker of it.
            let (mine, theirs) = (own.get("cpu").await.unwrap(), other.get(CPU).await.unwrap());
            assert_eq!(mine.entry, theirs.entry);
            assert_eq!((theirs.source, theirs.sha256), (daemon.url(), sum(theirs.pkgbuild.as_bytes())));
            for catalog in [&own, &other] {
                let to = place.path("source");
                catalog.files("cpu").file(&archive_name(), &to).await.unwrap();
                assert_eq!(std::fs::read(&to).unwrap(), ARCHIVE);
                assert_eq!(catalog.get("absent").await.unwrap_err().code, Code::WorkerNotFound);
                assert_eq!(catalog.get("../x").await.unwrap_err().code, Code::InvalidRequest);
                for name in ["absent", "../x", "PKGBUILD"] {
                    let failure = catalog.file(CPU, name, &to).await.unwrap_err();
                    assert_eq!(failure.code, Code::RecipeInvalid, "{name}");
                }
            }
        });
    });
}

#[test]
fn a_catalog_with_a_key_gives_sources_to_its_holder_and_says_what_others_lack() {
    alone(|| {
        let place = Place::new();
        let daemon = Daemon::try_start(&place, "catalog serve", &[], &[("RBEE_API_KEY", KEY)]).unwrap();
        asynchronously(async {
            let holder = Catalog::new(Some(&daemon.url()), Some(KEY)).unwrap();
            let recipe = holder.get("cpu").await.unwrap();
            assert!(
                recipe.pkgbuild.contains(&format!("source=('{}')", archive_name())),
                "{}",
                recipe.pkgbuild
            );
            let other = Catalog::new(Some(&daemon.url()), None).unwrap();
            let failure = other.get("cpu").await.unwrap_err();
            assert_eq!(failure.code, Code::CatalogUnavailable);
            assert!(failure.message.contains("--catalog-key-file"), "{}", failure.message);
        });
    });
}

#[test]
fn a_catalog_that_is_down_is_told_with_its_address_and_the_built_in_recipes_list() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}");
    let catalog = Catalog::new(Some(&url), None).unwrap();
    asynchronously(async {
        let listing = catalog.list().await;
        let warning = listing.warning.unwrap();
        assert_eq!(
            (warning.code, warning.details["url"].as_str()),
            (Code::CatalogUnavailable, Some(url.as_str()))
        );
        assert!(
            warning.message.contains(&url) && warning.message.contains("--catalog"),
            "{}",
            warning.message
        );
        assert_eq!(listing.source, BUILT_IN);
        assert_eq!(listing.entries, Catalog::new(None, None).unwrap().list().await.entries);
        assert_eq!(catalog.get("cpu").await.unwrap_err().code, Code::CatalogUnavailable);
    });
}

/// A server of one's own words: answers every request by its first line and headers, until the test ends.
struct Script {
    url: String,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Script {
    fn start(answer: impl Fn(&str) -> String + Send + 'static) -> Script {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let told = seen.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let head = read_head(&stream);
                told.lock().unwrap().push(head.clone());
                // A client that has read enough may be gone.
                let _ = stream.write_all(answer(&head).as_bytes());
            }
        });
        Script { url, seen }
    }

    fn catalog(&self) -> Catalog {
        Catalog::new(Some(&self.url), None).unwrap()
    }
}

/// The head of a request, in lower case; a body is read and passed over.
fn read_head(stream: &TcpStream) -> String {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while reader.read_line(&mut head).is_ok_and(|length| length > 2) {}
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    head
}

fn reply(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\ncontent-length: {length}\r\n\r\n{body}")
}

#[test]
fn a_catalog_that_lies_is_not_believed() {
    let good = asynchronously(Catalog::new(None, None).unwrap().get("cpu")).unwrap().entry;
    let with = |field: &str, value: Value| {
        let mut entry = json!(good);
        entry[field] = value;
        entry.to_string()
    };
    let cases = [
        ("not JSON", "hello".to_owned(), Code::CatalogUnavailable),
        ("another id", with("id", json!("other")), Code::RecipeInvalid),
        ("a path out of the package", with("install_path", json!("../../bin/x")), Code::RecipeInvalid),
        ("a program elsewhere", with("binary_name", json!("/bin/sh")), Code::RecipeInvalid),
        ("a PKGBUILD elsewhere", with("pkgbuild_url", json!("http://evil.example/x")), Code::RecipeInvalid),
        ("a PKGBUILD on another host", with("pkgbuild_url", json!("//evil.example/x")), Code::RecipeInvalid),
        ("a missing field", with("name", json!(null)), Code::CatalogUnavailable),
        ("too long", with("description", json!("x".repeat(100_000))), Code::CatalogUnavailable),
    ];
    for (what, body, code) in cases {
        let script = Script::start(move |_| reply("200 OK", "", &body));
        let failure = asynchronously(script.catalog().get("cpu")).unwrap_err();
        assert_eq!(failure.code, code, "{what}: {}", failure.message);
        assert_eq!(script.seen.lock().unwrap().len(), 1, "{what}: asked no further");
    }
    let listing =
        json!({"workers": [json!(good), {"id": "half"}, json!({"id": "x".repeat(99_999)})]}).to_string();
    let script = Script::start(move |_| reply("200 OK", "", &listing));
    let listing = asynchronously(script.catalog().list());
    assert_eq!(listing.entries, [good]);
    let warning = listing.warning.unwrap();
    assert_eq!(warning.code, Code::RecipeInvalid);
    assert!(warning.message.starts_with("2 recipes"), "{}", warning.message);
    let script = Script::start(|_| reply("500 Internal Server Error", "", "boom"));
    let failure = asynchronously(script.catalog().get("cpu")).unwrap_err();
    assert_eq!(failure.code, Code::CatalogUnavailable);
    assert!(failure.message.contains("500"), "{}", failure.message);
}

#[test]
fn what_has_not_changed_is_not_sent_again() {
    let good = asynchronously(Catalog::new(None, None).unwrap().get("cpu")).unwrap();
    let (entry, pkgbuild) = (json!(good.entry).to_string(), good.pkgbuild.clone());
    let script = Script::start(move |head| {
        let (tag, body) = match head.contains("/pkgbuild") {
            true => ("\"p\"", &pkgbuild),
            false => ("\"e\"", &entry),
        };
        match head.contains(&format!("if-none-match: {tag}")) {
            true => reply("304 Not Modified", "", ""),
            false => reply("200 OK", &format!("etag: {tag}\r\n"), body),
        }
    });
    let catalog = script.catalog();
    let (first, second) = asynchronously(async { (catalog.get("cpu").await, catalog.get("cpu").await) });
    assert_eq!(first, second);
    assert_eq!(first.unwrap().pkgbuild, good.pkgbuild);
    let seen = script.seen.lock().unwrap();
    let tagged: Vec<bool> = seen.iter().map(|head| head.contains("if-none-match")).collect();
    assert_eq!(tagged, [false, false, true, true]);
}

// ── The recipes of the tree, and the source ──────────────────────────────────────────────────────────────────────────

/// What bash reads in a PKGBUILD: every word of the variables, a line each.
fn variables(pkgbuild: &str, names: &[&str]) -> Option<Vec<Vec<String>>> {
    let script = names.iter().map(|name| format!("printf '%s\\n' \"${{{name}[@]}}\"; echo --\n"));
    let script = format!("{pkgbuild}\n{}", script.collect::<String>());
    let output = Command::new("bash").args(["--norc", "--noprofile", "-c", &script]).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let groups = text.split("--\n").take(names.len());
    Some(groups.map(|group| group.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()).collect())
}

#[test]
fn the_pkgbuilds_in_the_tree_say_what_their_entries_say() {
    let catalog = Catalog::new(None, None).unwrap();
    for entry in asynchronously(catalog.list()).entries {
        let recipe = asynchronously(catalog.get(&entry.id)).unwrap();
        let names = [
            "pkgname",
            "pkgver",
            "arch",
            "depends",
            "makedepends",
            "options",
            "license",
            "source",
            "_packages",
            "_sha256",
            "url",
        ];
        let Some(read) = variables(&recipe.pkgbuild, &names) else {
            return eprintln!("skipped: bash is missing");
        };
        let [name, version, arch, depends, makedepends, options, license, source, packages, sum, url] =
            &read[..]
        else {
            panic!("{read:?}")
        };
        assert_eq!((name, version), (&vec![entry.id.clone()], &vec![entry.version.replace('-', "_")]));
        assert_eq!((arch, depends), (&entry.architectures, &entry.depends), "{}", entry.id);
        assert_eq!((makedepends, options), (&entry.makedepends, &entry.options), "{}", entry.id);
        assert_eq!(license, &vec![entry.license.clone()]);
        if packages.is_empty() {
            assert_eq!(source.len(), 1, "{}", entry.id);
            assert!(entry.source.url.ends_with(&source[0]), "{} and {source:?}", entry.source.url);
        } else {
            // Brought by the index of Python packages that the machine uses: one package, one sum, the origin's release.
            assert_eq!((packages.len(), source.len(), sum[0].len()), (1, 0, 64), "{}", entry.id);
            assert_eq!(url, &vec![entry.source.url.clone()]);
            assert_eq!(entry.source.tag, Some(format!("b{}", entry.version)));
            assert!(packages[0].contains(&format!("=={}.", entry.version)), "{packages:?}");
        }
    }
}

#[test]
fn the_pkgbuilds_of_models_bring_the_bytes_that_their_facts_name() {
    for id in ["smollm2-135m-instruct", "gemma3-270m"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("pkgbuilds").join(id);
        let facts: toml::Table =
            std::fs::read_to_string(folder.join("worker.toml")).unwrap().parse().unwrap();
        let pkgbuild = std::fs::read_to_string(folder.join("PKGBUILD")).unwrap();
        let names = ["pkgname", "license", "_file", "_sha256", "makedepends"];
        let Some(read) = variables(&pkgbuild, &names) else { return eprintln!("skipped: bash is missing") };
        let text = |key: &str| vec![facts[key].as_str().unwrap().to_owned()];
        let needs = facts["makedepends"].as_array().unwrap().iter();
        let needs: Vec<String> = needs.map(|name| name.as_str().unwrap().to_owned()).collect();
        assert_eq!(read, [vec![id.to_owned()], text("license"), text("file"), text("sha256"), needs], "{id}");
        if let Some(hub) = facts.get("hub") {
            assert_eq!(hub["file"], facts["file"], "{id}");
        }
    }
}

#[test]
fn what_is_packed_from_the_unpacked_source_is_the_same_byte_for_byte() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("source.tar.gz"), ARCHIVE).unwrap();
    let tar = Command::new("tar").args(["xzf", "source.tar.gz"]).current_dir(dir.path()).status();
    if !tar.is_ok_and(|status| status.success()) {
        return eprintln!("skipped: tar is missing, or cannot unpack gzip");
    }
    let folder = format!("rbee-{VERSION}");
    let root = dir.path().join(&folder);
    let provenance = std::fs::read_to_string(root.join(archive::PROVENANCE)).unwrap();
    assert!(provenance.contains(&format!("version = \"{VERSION}\"")), "{provenance}");
    // What a build leaves beside the source is not packed, nor is what an editor leaves in it.
    std::fs::create_dir(root.join("target")).unwrap();
    std::fs::write(root.join("src/lib.rs~"), "leftover").unwrap();
    std::fs::write(root.join("src/.lib.rs.swp"), "leftover").unwrap();
    assert!(archive::pack(&root, &folder, &provenance).unwrap() == ARCHIVE);
    std::fs::write(root.join("src/lib.rs"), "changed").unwrap();
    assert!(archive::pack(&root, &folder, &provenance).unwrap() != ARCHIVE);

    let top: Vec<String> =
        root.read_dir().unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!top.contains(&"tests".to_owned()) && !top.contains(&".git".to_owned()), "{top:?}");
    // Cargo reads it: nothing that the manifest names is missing for a build.
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let read = Command::new(cargo)
        .args(["metadata", "--no-deps", "--offline", "--locked", "--format-version", "1"])
        .current_dir(&root)
        .output();
    let read = read.unwrap();
    assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
}

// ── The keeper ───────────────────────────────────────────────────────────────────────────────────────────────────────

/// A hive that answers every operation with one result.
fn hive(result: &Value) -> Script {
    let events = format!("id: 0\nevent: result\ndata: {result}\n\nid: 1\ndata: [DONE]\n\n");
    Script::start(move |head| match head.starts_with("post /v1/jobs ") {
        true => {
            let id = "01890000-0000-7000-8000-000000000000";
            let accepted = json!({"job_id": id, "sse_url": format!("/v1/jobs/{id}/stream")});
            reply("200 OK", "content-type: application/json\r\n", &accepted.to_string())
        }
        false => reply("200 OK", "content-type: text/event-stream\r\n", &events),
    })
}

#[test]
fn the_catalog_is_a_table_of_five_columns_aligned_whatever_the_script() {
    let place = Place::new();
    let mut wide = json!(asynchronously(Catalog::new(None, None).unwrap().get("cpu")).unwrap().entry);
    let plain = wide.clone();
    wide["id"] = json!("bee");
    wide["name"] = json!("推論 🐝");
    let warning =
        json!({"code": "CATALOG_UNAVAILABLE", "message": "the catalog at http://c:8787 does not answer"});
    let script = hive(&json!({"workers": [wide, plain], "warning": warning}));
    let told = place.rbee(&["worker", "available", "--hive", &script.url]);
    let (stdout, stderr) = (String::from_utf8(told.stdout).unwrap(), String::from_utf8(told.stderr).unwrap());
    assert_eq!(told.status.code(), Some(0), "{stderr}");
    assert!(stderr.contains("http://c:8787") && stderr.contains("CATALOG_UNAVAILABLE"), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let columns: Vec<&str> = lines[0].split_whitespace().collect();
    assert_eq!(columns, ["ID", "NAME", "TYPE", "PLATFORMS", "DESCRIPTION"]);
    // `推論 🐝` is 5 characters and 7 columns wide.
    let column = |line: &str| line.find(" cpu ").map(|at| line[..at].chars().count()).unwrap();
    assert_eq!(column(lines[1]) + 3, column(lines[2]), "{stdout}");
    let json = place.rbee(&["worker", "catalog", "--json", "--hive", &script.url]);
    let listed: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(listed.as_array().map(Vec::len), Some(2));
}

#[test]
fn installed_workers_processes_and_removals_read_as_sentences_or_json() {
    let place = Place::new();
    let worker = json!({"worker_id": CPU, "version": "0.1.0-1", "path": "/w", "size_bytes": 5 << 20, "installed_at": 1,
        "source": "built-in", "recipe_sha256": "ab".repeat(32), "backend": "cpu"});
    let process = json!({"pid": 7, "worker_id": "w", "command": "rbee worker", "memory_kb": 2048, "cpu_percent": 1.5, "elapsed": 62});
    let cases: [(&[&str], Value, &[&str]); 7] = [
        (&["worker", "list"], json!({"workers": [worker]}), &[CPU, "5 MiB", "built-in"]),
        (&["worker", "binary", "list"], json!({"workers": [worker]}), &[CPU]),
        (&["worker", "get", "cpu"], worker.clone(), &["recipe sha256  abab", "path           /w"]),
        (
            &["worker", "rm", "cpu"],
            json!({"id": CPU, "bytes_freed": 5 << 20}),
            &["removed llm-worker-rbee-cpu, 5 MiB freed"],
        ),
        (
            &["worker", "process", "list"],
            json!({"processes": [process]}),
            &["1m2s", "1.5 %", "2 MiB", "rbee worker"],
        ),
        (&["worker", "process", "get", "7"], process.clone(), &["elapsed  1m2s"]),
        (&["worker", "process", "delete", "7"], json!({"pid": 7}), &["process 7 has ended"]),
    ];
    for (args, result, words) in cases {
        let script = hive(&result);
        let told = place.rbee(&[args, &["--hive", &script.url]].concat());
        let stdout = String::from_utf8(told.stdout).unwrap();
        assert_eq!(told.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&told.stderr));
        for word in words {
            assert!(stdout.contains(word), "`{word}` is not in\n{stdout}");
        }
        let json = place.rbee(&[args, &["--json", "--hive", &script.url]].concat());
        assert!(serde_json::from_slice::<Value>(&json.stdout).is_ok(), "{args:?}");
    }
    for (args, code) in [
        (&["worker", "rm"][..], 2),
        (&["worker", "get", "../x"], 1),
        (&["worker", "process", "delete", "-1"], 2),
        (&["worker", "process", "delete", "all"], 2),
    ] {
        let told = place.rbee(&[args, &["--hive", "127.0.0.1:9"]].concat());
        assert_eq!(told.status.code(), Some(code), "{args:?}: {}", String::from_utf8_lossy(&told.stderr));
    }
}
