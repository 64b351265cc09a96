//! TLS for the client: rustls with ring. Trusted are the certificates that SSL_CERT_FILE or SSL_CERT_DIR name, else the
//! system's, else, where there is no store at all, Mozilla's as they were when this was built.
//!
//! Built on first use: a store takes a megabyte that a daemon which never leaves its network need not hold.

use rustls::{ClientConfig, RootCertStore};
use std::env;
use std::sync::{Arc, OnceLock};
use tokio_rustls::TlsConnector;

const FILE_VARIABLE: &str = "SSL_CERT_FILE";
const DIR_VARIABLE: &str = "SSL_CERT_DIR";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("no certificate could be read from what {FILE_VARIABLE} or {DIR_VARIABLE} names: {0}")]
    NoneNamed(String),
    #[error("configuring TLS")]
    Configure(#[source] rustls::Error),
}

/// The connector that all of a process's TLS connections are made with.
pub fn connector() -> Result<TlsConnector, TlsError> {
    static CONNECTOR: OnceLock<TlsConnector> = OnceLock::new();
    if let Some(connector) = CONNECTOR.get() {
        return Ok(connector.clone());
    }
    let config = configure(trusted()?)?;
    // Two at once may both build one; the first stays.
    Ok(CONNECTOR.get_or_init(|| TlsConnector::from(Arc::new(config))).clone())
}

fn configure(roots: RootCertStore) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Configure)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn trusted() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (_, unusable) = roots.add_parsable_certificates(found.certs);
    if unusable > 0 {
        tracing::debug!(unusable, "some of the system's certificates were passed over");
    }
    if !roots.is_empty() {
        return Ok(roots);
    }
    // Whoever named a store wants that one and no other.
    if env::var_os(FILE_VARIABLE).is_some() || env::var_os(DIR_VARIABLE).is_some() {
        let problems: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoneNamed(problems.join("; ")));
    }
    roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connector_speaks_http_1_and_is_built_once() {
        let first = connector().unwrap();
        assert_eq!(first.config().alpn_protocols, [b"http/1.1".to_vec()]);
        assert!(Arc::ptr_eq(first.config(), connector().unwrap().config()));
    }

    #[test]
    fn mozillas_roots_make_a_store() {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        assert!(configure(roots).is_ok());
    }
}
