//! A client that writes bytes and reads answers, so that a test can say what no decent client would.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A connection to the gateway.
pub(crate) struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// An answer as it came, its body put together.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The values of all headers of this name.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        lines.filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.all(name).first().copied()
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A GET as a decent client would write it.
pub(crate) fn get(host: &str, path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(address).await.unwrap(), unread: Vec::new() }
    }

    /// Sends what can be sent. A gateway that refuses early may close before it has read everything.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    pub(crate) async fn ask(&mut self, bytes: impl AsRef<[u8]>) -> Answer {
        self.send(bytes).await;
        self.answer().await.expect("an answer")
    }

    /// The next answer, or `None` when the connection ends before one.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.unread.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await?;
        };
        let head = String::from_utf8(self.unread.drain(..end).collect()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.header("content-length") {
            let length: usize = length.parse().unwrap();
            answer.body = self.take(length).await?;
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16).unwrap();
                answer.body.extend(self.take(size).await?);
                self.line().await?;
                if size == 0 {
                    break;
                }
            }
        }
        Some(answer)
    }

    pub(crate) async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.unread.len() < length {
            self.more().await?;
        }
        Some(self.unread.drain(..length).collect())
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(at) = self.unread.windows(2).position(|bytes| bytes == b"\r\n") {
                return String::from_utf8(self.unread.drain(..at + 2).collect()).ok();
            }
            self.more().await?;
        }
    }

    /// Whether the gateway ends the connection without another byte.
    pub(crate) async fn is_closed(&mut self) -> bool {
        self.unread.is_empty() && self.more().await.is_none()
    }

    async fn more(&mut self) -> Option<()> {
        let mut bytes = vec![0; 64 * 1024];
        let length = self.stream.read(&mut bytes).await.unwrap_or(0);
        self.unread.extend_from_slice(&bytes[..length]);
        (length > 0).then_some(())
    }
}
