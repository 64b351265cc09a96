#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct TlsError;
pub fn connector() -> Result<tokio_rustls::TlsConnector, TlsError> {
    Err(TlsError)
}
