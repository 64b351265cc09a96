//! Where a build's package managers fetch from: the person's settings for proxies, certificates and mirrors, without the
//! keys in them. A recipe is a stranger's program and must not see a password, so a mirror that needs one is not usable
//! from a recipe, and the build says so.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

const NAMES: [&str; 21] = [
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "NIX_SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_TRUSTED_HOST",
    "PIP_NO_INDEX",
    "PIP_DEFAULT_TIMEOUT",
    "UV_INDEX_URL",
    "UV_DEFAULT_INDEX",
    "GOPROXY",
    "GONOSUMDB",
    "CARGO_HTTP_CAINFO",
    "CARGO_HTTP_PROXY",
    "CARGO_NET_OFFLINE",
];
const PROXIES: [&str; 5] = ["http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"];
/// `CARGO_REGISTRIES_MINE_INDEX`, `CARGO_SOURCE_CRATES_IO_REPLACE_WITH`; never `…_TOKEN`.
const CARGO_PREFIXES: [&str; 2] = ["CARGO_REGISTRIES_", "CARGO_SOURCE_"];
const CARGO_SUFFIXES: [&str; 5] = ["_INDEX", "_REPLACE_WITH", "_REGISTRY", "_LOCAL_REGISTRY", "_DIRECTORY"];
/// Of cargo's configuration, what says where crates come from.
const CARGO_TABLES: [&str; 5] = ["source", "registries", "registry", "http", "net"];
const CARGO_SECRETS: [&str; 5] =
    ["token", "secret-key", "credential-provider", "global-credential-providers", "credential-process"];
/// Of pip's configuration files, with the variables that say the same.
const PIP_KEYS: [(&str, &str); 6] = [
    ("index-url", "PIP_INDEX_URL"),
    ("extra-index-url", "PIP_EXTRA_INDEX_URL"),
    ("find-links", "PIP_FIND_LINKS"),
    ("trusted-host", "PIP_TRUSTED_HOST"),
    ("no-index", "PIP_NO_INDEX"),
    ("cert", "PIP_CERT"),
];
const SETTINGS_BYTES_MAX: u64 = 1024 * 1024;

#[derive(Debug, Default)]
pub(super) struct Mirrors {
    /// For phases that may use the network.
    pub environment: Vec<(String, String)>,
    /// Files and folders that those settings name.
    pub read: Vec<PathBuf>,
    /// For all phases: cargo finds the crates it has fetched by the settings it fetched them with.
    pub cargo_config: Option<String>,
    pub warnings: Vec<String>,
}

impl Mirrors {
    pub(super) fn of(given: &BTreeMap<String, String>) -> Mirrors {
        let mut mirrors = Mirrors::default();
        let mut settings: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in pip_settings(given) {
            settings.insert(name.to_owned(), value);
        }
        settings
            .extend(given.iter().filter(|(name, _)| is_wanted(name)).map(|(n, v)| (n.clone(), v.clone())));
        for (name, value) in settings {
            let (value, had_key) = without_credentials(&value);
            if had_key {
                let left = "what it needs a password for is out of reach";
                mirrors.warnings.push(format!("recipes see {name} without the credentials in it: {left}"));
            }
            let words = value.split_whitespace().filter(|word| !word.contains("://"));
            let paths = words.flat_map(|word| word.split(':')).map(PathBuf::from);
            mirrors.read.extend(paths.filter(|path| path.is_absolute()));
            mirrors.environment.push((name, value));
        }
        mirrors.read_cargo(given);
        mirrors
    }

    fn read_cargo(&mut self, given: &BTreeMap<String, String>) {
        let home = given.get("CARGO_HOME").map(PathBuf::from);
        let Some(home) = home.or_else(|| Some(Path::new(given.get("HOME")?).join(".cargo"))) else { return };
        let text = ["config.toml", "config"].iter().find_map(|name| read_settings(&home.join(name)));
        let Some(Ok(config)) = text.map(|text| text.parse::<Table>()) else { return };
        let mut kept = Table::new();
        for name in CARGO_TABLES {
            if let Some(value) = config.get(name) {
                let mut had_key = false;
                if let Some(value) = self.clean(value, &mut had_key) {
                    kept.insert(name.to_owned(), value);
                }
                if had_key {
                    self.warnings.push(format!("recipes see cargo's [{name}] without the credentials in it"));
                }
            }
        }
        if !kept.is_empty() {
            self.cargo_config = toml::to_string(&kept).ok();
        }
    }

    fn clean(&mut self, value: &Value, had_key: &mut bool) -> Option<Value> {
        match value {
            Value::String(text) => {
                let (text, removed) = without_credentials(text);
                *had_key |= removed;
                self.read.extend(Some(PathBuf::from(&text)).filter(|path| path.is_absolute()));
                Some(Value::String(text))
            }
            Value::Table(table) => {
                let is_secret = |name: &String| CARGO_SECRETS.contains(&name.as_str());
                *had_key |= table.keys().any(is_secret);
                let kept = table.iter().filter(|(name, _)| !is_secret(name));
                let kept: Table = kept
                    .filter_map(|(name, value)| Some((name.clone(), self.clean(value, had_key)?)))
                    .collect();
                Some(Value::Table(kept))
            }
            Value::Array(list) => {
                Some(Value::Array(list.iter().filter_map(|value| self.clean(value, had_key)).collect()))
            }
            other => Some(other.clone()),
        }
    }
}

fn is_wanted(name: &str) -> bool {
    let of_cargo = CARGO_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        && CARGO_SUFFIXES.iter().any(|suffix| name.ends_with(suffix));
    NAMES.contains(&name) || PROXIES.contains(&name.to_ascii_lowercase().as_str()) || of_cargo
}

/// `scheme://user:password@host` becomes `scheme://host`, wherever it stands; whether there was one.
pub(super) fn without_credentials(text: &str) -> (String, bool) {
    let (mut clean, mut rest, mut found) = (String::new(), text, false);
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        clean.push_str(before);
        let end = after.find(['/', '?', '#', ' ', ',', '\\', '"', '\'']).unwrap_or(after.len());
        let (authority, path) = after.split_at(end);
        match authority.rsplit_once('@') {
            Some((_, host)) => {
                clean.push_str(host);
                found = true;
            }
            None => clean.push_str(authority),
        }
        rest = path;
    }
    clean.push_str(rest);
    (clean, found)
}

/// pip's settings, its system's first, so that the person's own come later and win.
fn pip_settings(given: &BTreeMap<String, String>) -> Vec<(&'static str, String)> {
    let mut files = vec![PathBuf::from("/etc/pip.conf")];
    if let Some(home) = given.get("HOME").map(Path::new) {
        files.extend([home.join(".pip/pip.conf"), home.join(".config/pip/pip.conf")]);
    }
    files.extend(given.get("PIP_CONFIG_FILE").map(PathBuf::from));
    let texts = files.iter().filter_map(|file| read_settings(file));
    texts.flat_map(|text| pip_file(&text)).collect()
}

/// One file: `[section]`, `key = value`, and lines with an indent that go on with the value.
fn pip_file(text: &str) -> Vec<(&'static str, String)> {
    let (mut found, mut counts): (Vec<(&'static str, String)>, bool) = (Vec::new(), false);
    let mut goes_on = false;
    for line in text.lines().filter(|line| !line.trim_start().starts_with(['#', ';'])) {
        if let Some(section) = line.trim().strip_prefix('[') {
            counts = matches!(section.trim_end_matches(']'), "global" | "install" | "download");
            goes_on = false;
        } else if line.starts_with([' ', '\t']) && goes_on {
            if let Some((_, value)) = found.last_mut() {
                *value = format!("{value} {}", line.trim()).trim().to_owned();
            }
        } else if let Some((key, value)) = line.split_once('=').filter(|_| counts) {
            let known = PIP_KEYS.iter().find(|(name, _)| *name == key.trim());
            found.extend(known.map(|(_, variable)| (*variable, value.trim().to_owned())));
            goes_on = known.is_some();
        } else {
            goes_on = false;
        }
    }
    found
}

fn read_settings(path: &Path) -> Option<String> {
    let meta = path.metadata().ok().filter(|meta| meta.is_file() && meta.len() <= SETTINGS_BYTES_MAX)?;
    (meta.len() > 0).then(|| std::fs::read_to_string(path).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_survives_in_an_address() {
        for (with, without) in [
            ("https://me:secret@host/simple", "https://host/simple"),
            ("http://token@proxy:3128", "http://proxy:3128"),
            ("https://a:b@c@host/", "https://host/"),
            ("https://one/x https://k:v@two/y", "https://one/x https://two/y"),
            ("sparse+https://u:p@index/", "sparse+https://index/"),
        ] {
            assert_eq!(without_credentials(with), (without.to_owned(), true), "{with}");
        }
        assert_eq!(without_credentials("localhost,.lan"), ("localhost,.lan".into(), false));
        assert_eq!(without_credentials("https://h/a@b"), ("https://h/a@b".into(), false));
    }

    #[test]
    fn cargo_is_told_of_mirrors_and_never_of_tokens() {
        let home = tempfile::tempdir().unwrap();
        let config = "[source.crates-io]\nreplace-with = 'm'\n[source.m]\nregistry = 'sparse+https://u:p@m/i/'\n\
            [registries.m]\nindex = 'sparse+https://m/i/'\ntoken = 'canary'\n[registry]\ntoken = 'canary'\n\
            [build]\nrustc-wrapper = 'evil'\n[http]\ncainfo = '/etc/ca.pem'\n";
        std::fs::create_dir(home.path().join(".cargo")).unwrap();
        std::fs::write(home.path().join(".cargo/config.toml"), config).unwrap();
        let given = [
            ("HOME", home.path().to_str().unwrap()),
            ("CARGO_REGISTRIES_M_TOKEN", "canary"),
            ("CARGO_REGISTRIES_M_INDEX", "sparse+https://u:canary@m/"),
            ("HF_TOKEN", "canary"),
            ("HTTPS_PROXY", "http://me:canary@proxy:1"),
        ];
        let given = given.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let mirrors = Mirrors::of(&given);
        let config = mirrors.cargo_config.clone().unwrap();
        let kept: Table = config.parse().unwrap();
        assert_eq!(kept["source"]["m"]["registry"].as_str(), Some("sparse+https://m/i/"));
        assert_eq!(kept["source"]["crates-io"]["replace-with"].as_str(), Some("m"));
        assert!(!kept.contains_key("build"));
        let all = format!("{config}{:?}", mirrors.environment);
        assert!(!all.contains("canary") && !all.contains("u:p"), "{all}");
        assert!(mirrors.environment.contains(&("HTTPS_PROXY".into(), "http://proxy:1".into())));
        assert!(mirrors.read.contains(&PathBuf::from("/etc/ca.pem")) && mirrors.warnings.len() >= 3);
    }

    #[test]
    fn pips_files_say_what_its_variables_would() {
        let text = "[global]\n# no\nindex-url = https://m/simple\nfind-links =\n    /a\n    /b\ntimeout = 3\n[freeze]\ncert = /x\n";
        let found = pip_file(text);
        assert_eq!(found, [("PIP_INDEX_URL", "https://m/simple".into()), ("PIP_FIND_LINKS", "/a /b".into())]);
    }
}
