//! Asking upstream resolvers.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::message::{Question, UDP_MAX};

/// As in resolv.conf(5).
pub(crate) const UPSTREAMS_MAX: usize = 3;
const DNS_PORT: u16 = 53;
const ATTEMPT_DEADLINE: Duration = Duration::from_secs(2);
/// What the length before a message can say.
const ANSWER_MAX: usize = 65_535;
/// Answers to something else that an attempt looks at.
const STRAY_MAX: usize = 16;

/// The resolvers of a resolv.conf(5), at most three; `127.0.0.1` if there is
/// none, as the C library has it.
#[must_use]
pub fn upstreams_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let addresses = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        address.parse::<IpAddr>().ok()
    });
    let found: Vec<_> = addresses
        .take(UPSTREAMS_MAX)
        .map(|ip| SocketAddr::new(ip, DNS_PORT))
        .collect();
    if found.is_empty() {
        return vec![SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT))];
    }
    found
}

/// Asks one resolver after the other, and says what the first good answer
/// was, or else the last bad one.
pub(crate) async fn ask(
    upstreams: &[SocketAddr],
    question: &Question,
    udp: bool,
) -> Option<Vec<u8>> {
    let mut bad = None;
    for upstream in upstreams.iter().take(UPSTREAMS_MAX) {
        let asked = async {
            if udp {
                ask_udp(*upstream, question).await
            } else {
                ask_tcp(*upstream, question).await
            }
        };
        match timeout(ATTEMPT_DEADLINE, asked).await {
            Ok(Ok((answer, false))) => return Some(answer),
            Ok(Ok((answer, true))) => bad = Some(answer),
            Ok(Err(error)) => tracing::debug!(%upstream, %error, "a resolver failed"),
            Err(_) => tracing::debug!(%upstream, "a resolver was silent"),
        }
    }
    bad
}

/// A socket of its own for each question: its port is random, as is the id,
/// and nobody but the resolver is heard.
async fn ask_udp(upstream: SocketAddr, question: &Question) -> io::Result<(Vec<u8>, bool)> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(upstream).await?;
    let (id, query) = new_query(question)?;
    socket.send(&query).await?;
    let mut buffer = vec![0; usize::from(UDP_MAX) * 4];
    for _ in 0..STRAY_MAX {
        let len = socket.recv(&mut buffer).await?;
        if let Some(answered) = question.is_answered_by(id, &buffer[..len]) {
            buffer.truncate(len);
            return Ok((buffer, answered.failed));
        }
    }
    Err(io::Error::other("too many answers to something else"))
}

async fn ask_tcp(upstream: SocketAddr, question: &Question) -> io::Result<(Vec<u8>, bool)> {
    let mut stream = TcpStream::connect(upstream).await?;
    let (id, query) = new_query(question)?;
    write_frame(&mut stream, &query).await?;
    let answer = read_frame(&mut stream, ANSWER_MAX).await?;
    match question.is_answered_by(id, &answer) {
        Some(answered) => Ok((answer, answered.failed)),
        None => Err(io::Error::other("an answer to something else")),
    }
}

fn new_query(question: &Question) -> io::Result<(u16, Vec<u8>)> {
    let mut id = [0; 2];
    skiff_base::random::fill(&mut id);
    let id = u16::from_ne_bytes(id);
    let query = question.upstream_query(id);
    Ok((id, query.ok_or(io::ErrorKind::InvalidInput)?))
}

/// Reads a message of at most `limit` bytes after its length (RFC 1035
/// § 4.2.2).
pub(crate) async fn read_frame(
    stream: &mut (impl AsyncRead + Unpin),
    limit: usize,
) -> io::Result<Vec<u8>> {
    let len = usize::from(stream.read_u16().await?);
    if len > limit {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; len];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

/// Writes a message with its length before it.
pub(crate) async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    message: &[u8],
) -> io::Result<()> {
    let len = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = len.to_be_bytes().to_vec();
    frame.extend_from_slice(message);
    stream.write_all(&frame).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_is_read() {
        let text = "# comment\nsearch example.com\nnameserver 192.0.2.1\nnameserver ::1\n\
                    nameserver fe80::1%eth0\nnameserverx 192.0.2.2\n";
        let found = upstreams_of(text);
        assert_eq!(
            found,
            ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]
        );
        assert_eq!(upstreams_of(""), ["127.0.0.1:53".parse().unwrap()]);
        assert_eq!(upstreams_of(&"nameserver 192.0.2.1\n".repeat(9)).len(), 3);
    }
}
