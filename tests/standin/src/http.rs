//! HTTP/1.1 over TLS, just enough of it: one thread per connection, keep-alive, bodies by length or
//! in chunks. Written out because a guest under emulation has neither memory nor time for more.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

const MAX_BODY: usize = 8 << 20;
/// Each agent of a fleet keeps a few.
const MAX_CONNECTIONS: usize = 1024;
const IDLE: Duration = Duration::from_secs(60);

pub struct Request {
    pub method: String,
    /// Path and query as they were sent.
    pub target: String,
    pub path: String,
    pub query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The client's certificate, verified by rustls against the client CA.
    pub certificate: Option<Vec<u8>>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }
}

pub struct Response {
    pub status: u16,
    pub content_type: &'static str,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        Response { status, content_type: "text/plain", body: body.into().into_bytes() }
    }

    pub fn json(status: u16, body: &Value) -> Self {
        Response { status, content_type: "application/json", body: body.to_string().into_bytes() }
    }

    /// A kubernetes Status object.
    pub fn failure(status: u16, reason: &str, message: impl Into<String>, details: Value) -> Self {
        Self::json(
            status,
            &json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": message.into(), "reason": reason, "details": details, "code": status,
            }),
        )
    }
}

pub fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        201 => "Created",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        415 => "Unsupported Media Type",
        422 => "Unprocessable Entity",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

pub type Handler = dyn Fn(&Request) -> Response + Send + Sync;

/// Serves until the process ends.
pub fn serve(listener: &TcpListener, tls: &Arc<ServerConfig>, handler: &Arc<Handler>) {
    let live = Arc::new(AtomicUsize::new(0));
    loop {
        let Ok((socket, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(50)); // Out of descriptors, most likely.
            continue;
        };
        if live.load(Ordering::SeqCst) >= MAX_CONNECTIONS {
            continue; // Dropping the socket refuses the connection.
        }
        let (tls, handler, guard) = (tls.clone(), handler.clone(), Guard::new(&live));
        let spawned = std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
            let _guard = guard;
            // A peer that goes away or speaks nonsense is its own problem.
            let _ = connection(socket, tls, &*handler);
        });
        drop(spawned);
    }
}

struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Guard(count.clone())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn connection(socket: TcpStream, tls: Arc<ServerConfig>, handler: &Handler) -> io::Result<()> {
    socket.set_read_timeout(Some(IDLE))?;
    socket.set_write_timeout(Some(IDLE))?;
    socket.set_nodelay(true)?;
    let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    while let Some(mut request) = read_request(&mut stream)? {
        request.certificate =
            stream.get_ref().conn.peer_certificates().and_then(|c| c.first()).map(|c| c.as_ref().to_vec());
        let response = handler(&request);
        let close = request.header("connection").is_some_and(|c| c.eq_ignore_ascii_case("close"));
        let head = format!(
            "HTTP/1.1 {} {}\r\nServer: k3s-standin\r\nContent-Type: {}\r\nContent-Length: {}\r\n{}\r\n",
            response.status,
            phrase(response.status),
            response.content_type,
            response.body.len(),
            if close { "Connection: close\r\n" } else { "" },
        );
        let out = stream.get_mut();
        out.write_all(head.as_bytes())?;
        if request.method != "HEAD" {
            out.write_all(&response.body)?;
        }
        out.flush()?;
        if close {
            break;
        }
    }
    let out = stream.get_mut();
    out.conn.send_close_notify();
    out.flush()
}

/// A line without its end; `None` at the end of the stream.
pub fn read_line(stream: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = Vec::new();
    stream.by_ref().take(64 << 10).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
}

/// Header lines up to the empty one, names in lower case.
pub fn read_headers(stream: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    while let Some(line) = read_line(stream)?.filter(|l| !l.is_empty()) {
        if headers.len() > 100 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if let Some((name, value)) = line.split_once(':') {
            headers.push((name.trim().to_lowercase(), value.trim().to_owned()));
        }
    }
    Ok(headers)
}

pub fn read_body(stream: &mut impl BufRead, headers: &[(String, String)]) -> io::Result<Vec<u8>> {
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let mut body = Vec::new();
    if header("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let line = read_line(stream)?.unwrap_or_default();
            let size = usize::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16)
                .map_err(io::Error::other)?;
            if size == 0 {
                read_headers(stream)?;
                return Ok(body);
            }
            if body.len() + size > MAX_BODY {
                return Err(io::ErrorKind::InvalidData.into());
            }
            let start = body.len();
            body.resize(start + size, 0);
            stream.read_exact(&mut body[start..])?;
            read_line(stream)?;
        }
    }
    let length = header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    if length > MAX_BODY {
        return Err(io::ErrorKind::InvalidData.into());
    }
    body.resize(length, 0);
    stream.read_exact(&mut body)?;
    Ok(body)
}

fn read_request<S: Read + Write>(stream: &mut BufReader<S>) -> io::Result<Option<Request>> {
    let Some(line) = read_line(stream)? else {
        return Ok(None);
    };
    let mut words = line.split(' ');
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let headers = read_headers(stream)?;
    if headers.iter().any(|(n, v)| n == "expect" && v.eq_ignore_ascii_case("100-continue")) {
        stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        stream.get_mut().flush()?;
    }
    let body = read_body(stream, &headers)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let query = query
        .split('&')
        .filter(|p| !p.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name), decode(value)))
        .collect();
    Ok(Some(Request {
        method: method.to_owned(),
        target: target.to_owned(),
        // There a `+` is one.
        path: decode(&path.replace('+', "%2B")),
        query,
        headers,
        body,
        certificate: None,
    }))
}

fn decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        match b {
            b'%' => {
                let pair: Vec<u8> = bytes.by_ref().take(2).collect();
                let byte = std::str::from_utf8(&pair).ok().and_then(|p| u8::from_str_radix(p, 16).ok());
                out.push(byte.unwrap_or(b'?'));
            }
            b'+' => out.push(b' '),
            b => out.push(b),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
