//! A small real HTTP server on loopback that misbehaves as it is told.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What the server does with one request.
#[derive(Clone)]
pub(super) enum Reply {
    /// The file, or the part of it that was asked for.
    Whole(Vec<u8>),
    /// The file, but the connection ends after so many bytes of this answer.
    Cut(Vec<u8>, usize),
    /// So many bytes of it, then silence until the client goes.
    Stall(Vec<u8>, usize),
    /// One byte after the other, with this pause.
    Drip(Vec<u8>, Duration),
    /// An error, with more header lines.
    Status(u16, &'static str),
    /// The whole file whatever was asked for.
    NoRange(Vec<u8>),
    /// As `Whole`, but not before the test says so.
    Gate(Vec<u8>, Arc<Mutex<Receiver<()>>>),
}

/// A gate and its opener.
pub(super) fn gate(body: &[u8]) -> (Reply, Sender<()>) {
    let (open, wait) = channel();
    (Reply::Gate(body.to_vec(), Arc::new(Mutex::new(wait))), open)
}

type Script = Arc<Mutex<HashMap<String, Vec<Reply>>>>;

/// Answers on loopback until the test process ends.
pub(super) struct Server {
    pub base: String,
    script: Script,
    log: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (script, log) = (Script::default(), Arc::new(Mutex::new(Vec::new())));
        let server = Self { base, script: script.clone(), log: log.clone() };
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, log) = (script.clone(), log.clone());
                thread::spawn(move || drop(answer(stream, &script, &log)));
            }
        });
        server
    }

    /// What `path` gives: one reply after the other, the last one for ever.
    pub(super) fn on(&self, path: &str, replies: impl Into<Vec<Reply>>) {
        self.script.lock().unwrap().insert(path.to_owned(), replies.into());
    }

    pub(super) fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// What was asked for: `/path` or `/path bytes=5-`.
    pub(super) fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

fn answer(stream: TcpStream, script: &Script, log: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut range = None;
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.trim().to_owned());
        }
    }
    log.lock().unwrap().push(range.as_ref().map_or(path.clone(), |r| format!("{path} {r}")));
    let reply = match script.lock().unwrap().get_mut(&path) {
        Some(replies) if replies.len() > 1 => replies.remove(0),
        Some(replies) => replies[0].clone(),
        None => Reply::Status(404, ""),
    };
    let from = range.and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    respond(stream, reply, from)
}

fn respond(mut out: TcpStream, reply: Reply, from: Option<usize>) -> std::io::Result<()> {
    let mut head = |body: &[u8]| -> std::io::Result<usize> {
        match from {
            Some(from) if from >= body.len() => {
                write!(out, "HTTP/1.1 416 X\r\nContent-Length: 4\r\nConnection: close\r\n\r\nnone")?;
                Ok(body.len())
            }
            Some(from) => {
                let (last, len) = (body.len() - 1, body.len());
                write!(out, "HTTP/1.1 206 X\r\nContent-Range: bytes {from}-{last}/{len}\r\n")?;
                write!(out, "Content-Length: {}\r\nConnection: close\r\n\r\n", len - from)?;
                Ok(from)
            }
            None => {
                write!(out, "HTTP/1.1 200 X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
                Ok(0)
            }
        }
    };
    match reply {
        Reply::Whole(body) => {
            let from = head(&body)?;
            out.write_all(&body[from..])
        }
        Reply::NoRange(body) => {
            write!(out, "HTTP/1.1 200 X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
            out.write_all(&body)
        }
        Reply::Cut(body, n) => {
            let from = head(&body)?;
            out.write_all(&body[from..(from + n).min(body.len())])
        }
        Reply::Stall(body, n) => {
            let from = head(&body)?;
            out.write_all(&body[from..from + n])?;
            // Until the other side closes.
            BufReader::new(out).read_line(&mut String::new()).map(drop)
        }
        Reply::Drip(body, pause) => {
            let from = head(&body)?;
            for byte in &body[from..] {
                out.write_all(&[*byte])?;
                thread::sleep(pause);
            }
            Ok(())
        }
        Reply::Status(code, more) => {
            write!(out, "HTTP/1.1 {code} X\r\n{more}Content-Length: 5\r\nConnection: close\r\n\r\nsorry")
        }
        Reply::Gate(body, wait) => {
            let _ = wait.lock().unwrap().recv_timeout(Duration::from_secs(20));
            let from = head(&body)?;
            out.write_all(&body[from..])
        }
    }
}
