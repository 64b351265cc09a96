#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct ResolveError;
pub async fn lookup(host: &str, port: u16) -> Result<Vec<std::net::SocketAddr>, ResolveError> {
    Ok(vec![std::net::SocketAddr::new(host.parse().map_err(|_| ResolveError)?, port)])
}
