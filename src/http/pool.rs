//! Connections to one server that are used again, where requests come by the hundred and setting one up costs as much as the
//! request itself: a hive's to its workers. A connection goes back when its answer was read to the end; one whose answer was
//! dropped is closed, and with it the server's work on it ends. What is idle is given up before a server would, and a request
//! that an old connection did not take goes over a new one.

use crate::http::Body;
use crate::http::client::{ClientError, Connection, Target};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

/// How long a connection may be idle: servers that people run close theirs after five seconds and more.
pub const IDLE_MAX: Duration = Duration::from_secs(2);
pub const IDLE_CONNECTIONS_MAX: usize = 32;

#[derive(Debug)]
pub struct Pool {
    target: Target,
    /// The latest last.
    idle: Mutex<Vec<(Instant, Connection)>>,
}

impl Pool {
    pub fn new(target: Target) -> Arc<Self> {
        Arc::new(Pool { target, idle: Mutex::default() })
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Sends one request, whose URI is a path.
    pub async fn send(
        self: &Arc<Self>,
        mut request: http::Request<Body>,
    ) -> Result<http::Response<Pooled>, ClientError> {
        while let Some(mut connection) = self.take() {
            match connection.try_send(request).await? {
                Ok(answer) => return Ok(self.lend(answer, connection)),
                Err(unsent) => request = unsent,
            }
        }
        // Seldom gone, and large: kept out of what every request carries with it.
        let mut connection = Box::pin(Connection::open(&self.target)).await?;
        let answer = connection.send(request).await?;
        Ok(self.lend(answer, connection))
    }

    fn lend(
        self: &Arc<Self>,
        answer: http::Response<Incoming>,
        connection: Connection,
    ) -> http::Response<Pooled> {
        answer.map(|body| Pooled { body, lent: Some((self.clone(), connection)) })
    }

    fn idle(&self) -> MutexGuard<'_, Vec<(Instant, Connection)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|(since, connection)| since.elapsed() < IDLE_MAX && connection.is_open());
        idle.pop().map(|(_, connection)| connection)
    }

    fn give_back(&self, connection: Connection) {
        let mut idle = self.idle();
        if connection.is_open() && idle.len() < IDLE_CONNECTIONS_MAX {
            idle.push((Instant::now(), connection));
        }
    }
}

/// An answer's body; its connection goes back when it has ended.
#[derive(Debug)]
pub struct Pooled {
    body: Incoming,
    lent: Option<(Arc<Pool>, Connection)>,
}

impl http_body::Body for Pooled {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let is_over = match &polled {
            Poll::Ready(None) => true,
            // Whoever knows its length need not ask for more.
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            _ => false,
        };
        if is_over && let Some((pool, connection)) = self.lent.take() {
            pool.give_back(connection);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::client;
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    /// Answers every request of a connection with the connection's number, and after `requests` closes it unannounced.
    async fn server(requests: usize) -> (Target, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target::parse(&listener.local_addr().unwrap().to_string()).unwrap();
        let serving = tokio::spawn(async move {
            for number in 0.. {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    for _ in 0..requests {
                        if !read_head(&mut stream).await {
                            return;
                        }
                        let body = number.to_string();
                        let answer =
                            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        (target, serving)
    }

    async fn read_head(stream: &mut TcpStream) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match stream.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => return false,
            }
        }
        true
    }

    async fn ask(pool: &Arc<Pool>) -> http::Response<Pooled> {
        pool.send(client::get("/").unwrap()).await.unwrap()
    }

    async fn number(answer: http::Response<Pooled>) -> String {
        String::from_utf8(answer.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_connection_is_used_again_when_its_answer_was_read_and_closed_when_it_was_not() {
        let (target, serving) = server(usize::MAX).await;
        let pool = Pool::new(target);
        for _ in 0..3 {
            assert_eq!(number(ask(&pool).await).await, "0");
        }
        let (one, two) = (ask(&pool).await, ask(&pool).await);
        drop(one);
        assert_eq!(number(two).await, "1", "one at a time");
        assert_eq!(number(ask(&pool).await).await, "1", "the first was closed with its answer");
        serving.abort();
    }

    #[tokio::test]
    async fn a_body_that_tells_its_end_early_gives_its_connection_back_with_the_last_piece() {
        let (target, serving) = server(usize::MAX).await;
        let pool = Pool::new(target);
        let mut body = ask(&pool).await.into_body();
        let piece = body.frame().await.unwrap().unwrap().into_data().unwrap();
        assert!(piece == "0" && http_body::Body::is_end_stream(&body));
        assert_eq!(number(ask(&pool).await).await, "0", "the same connection");
        serving.abort();
    }

    #[tokio::test]
    async fn one_that_the_server_has_closed_is_not_asked_again() {
        let (target, serving) = server(1).await;
        let pool = Pool::new(target);
        for expected in ["0", "1", "2"] {
            let answer = number(ask(&pool).await).await;
            assert_eq!(answer, expected);
            while pool.idle().first().is_some_and(|(_, connection)| connection.is_open()) {
                tokio::task::yield_now().await;
            }
        }
        serving.abort();
    }
}
