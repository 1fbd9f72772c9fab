//! One HTTP GET that can be bounded, resumed, repeated and cancelled.
//!
//! The transfer runs on a thread of its own and hands over what comes: so a server that hangs, at
//! whatever point, costs the bound and not more, and an abort takes effect at once. A thread left
//! behind ends with its next read or its own time-out.

use std::cell::OnceCell;
use std::fs;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use ureq::Agent;
use ureq::tls::TlsConfig;

use super::{Bounds, Error, Net, roots};
use crate::explain::Explain;
use crate::os::Cancel;
use crate::os::cancel::Level;
use crate::os::files::At;

/// Bytes handed over at a time; a few of them are all the memory that a download takes.
const CHUNK: usize = 64 * 1024;

enum Message {
    Head(Head),
    Chunk(Vec<u8>),
    End,
    Failed(ureq::Error),
    Aborted,
}

/// What an answer says of itself.
pub(super) struct Head {
    pub status: u16,
    /// The length of this answer's body.
    pub length: Option<u64>,
    /// Where a partial answer begins.
    pub range_start: Option<u64>,
    retry_after: Option<Duration>,
}

/// Who takes what comes. `head` is called once, before any `chunk`.
pub(super) trait Sink {
    /// Where to go on, if something is there already: asked for before each attempt.
    fn resume_at(&mut self) -> Result<u64, Error>;
    fn head(&mut self, head: &Head) -> Result<(), Error>;
    fn chunk(&mut self, bytes: &[u8]) -> Result<(), Error>;
}

pub(super) struct Http<'a> {
    net: &'a Net,
    bounds: &'a Bounds,
    cancel: &'a Cancel,
    roots: OnceCell<ureq::tls::RootCerts>,
}

impl<'a> Http<'a> {
    pub(super) fn new(net: &'a Net, bounds: &'a Bounds, cancel: &'a Cancel) -> Self {
        Self { net, bounds, cancel, roots: OnceCell::new() }
    }

    /// A small text, at most 1 MiB of it; `file://` is fine.
    pub(super) fn text(&self, url: &str) -> Result<String, Error> {
        if let Some(path) = local_path(url)? {
            return Ok(fs::read_to_string(&path).at("read", &path)?);
        }
        struct Text<'a>(Vec<u8>, &'a str);
        impl Sink for Text<'_> {
            fn resume_at(&mut self) -> Result<u64, Error> {
                self.0.clear();
                Ok(0)
            }
            fn head(&mut self, _: &Head) -> Result<(), Error> {
                Ok(())
            }
            fn chunk(&mut self, bytes: &[u8]) -> Result<(), Error> {
                self.0.extend_from_slice(bytes);
                if self.0.len() > 1 << 20 {
                    return Err(Error::Answer { url: self.1.to_owned(), what: "it is too long".to_owned() });
                }
                Ok(())
            }
        }
        let mut text = Text(Vec::new(), url);
        self.get(url, &mut text)?;
        String::from_utf8(text.0)
            .map_err(|_| Error::Answer { url: url.to_owned(), what: "it is not text".to_owned() })
    }

    /// Gets `url` into `sink`, with as many attempts as the bounds allow: one within a step.
    pub(super) fn get(&self, url: &str, sink: &mut dyn Sink) -> Result<(), Error> {
        let end = Instant::now() + self.bounds.total;
        let retry = &self.bounds.retry;
        for attempt in 1.. {
            let error = match self.attempt(url, sink, end) {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            if !error.transient() || attempt >= retry.attempts {
                return Err(error);
            }
            let pause = retry.pause(attempt, url, error.pause());
            if Instant::now() + pause >= end {
                return Err(error);
            }
            if self.cancel.sleep(pause, Level::Stop) {
                return Err(Error::Cancelled);
            }
        }
        unreachable!("the loop ends by returning")
    }

    fn attempt(&self, url: &str, sink: &mut dyn Sink, end: Instant) -> Result<(), Error> {
        let from = sink.resume_at()?;
        let agent = self.agent(url)?;
        let (send, receive) = mpsc::sync_channel(4);
        let _guard = self.cancel.on_abort({
            let send = send.clone();
            // A full channel is fine: whoever reads it looks at the token, too.
            move || drop(send.try_send(Message::Aborted))
        });
        let address = url.to_owned();
        thread::Builder::new()
            .name("download".to_owned())
            .spawn(move || {
                let last =
                    transfer(&agent, &address, from, &send).map_or_else(Message::Failed, |()| Message::End);
                let _ = send.send(last);
            })
            .map_err(|e| Error::Connection { url: url.to_owned(), cause: e.to_string() })?;

        let (mut expected, mut got) = (None, 0);
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let message = receive.recv_timeout(self.bounds.silence.min(left));
            if self.cancel.aborted() {
                return Err(Error::Cancelled);
            }
            match message {
                Ok(Message::Head(head)) => {
                    // 416: there is nothing behind what is here already.
                    let good = matches!(head.status, 200 | 206) || head.status == 416 && from > 0;
                    if !good {
                        let (status, retry_after) = (head.status, head.retry_after);
                        return Err(Error::Status { url: url.to_owned(), status, retry_after });
                    }
                    expected = head.length;
                    sink.head(&head)?;
                }
                Ok(Message::Chunk(bytes)) => {
                    got += bytes.len() as u64;
                    sink.chunk(&bytes)?;
                }
                Ok(Message::End) if expected.is_none_or(|n| n == got) => return Ok(()),
                Ok(Message::End) => {
                    return Err(Error::Connection {
                        url: url.to_owned(),
                        cause: "it was cut short".to_owned(),
                    });
                }
                Ok(Message::Failed(error)) => return Err(self.explain(url, error)),
                Ok(Message::Aborted) => return Err(Error::Cancelled),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Error::Connection {
                        url: url.to_owned(),
                        cause: "the transfer broke off".to_owned(),
                    });
                }
                Err(RecvTimeoutError::Timeout) if Instant::now() >= end => {
                    return Err(Error::TooSlow { url: url.to_owned(), bound: self.bounds.total });
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Error::Silence { url: url.to_owned(), bound: self.bounds.silence });
                }
            }
            if Instant::now() >= end {
                return Err(Error::TooSlow { url: url.to_owned(), bound: self.bounds.total });
            }
        }
    }

    fn agent(&self, url: &str) -> Result<Agent, Error> {
        let bad = |what: &str| Error::BadUrl { url: url.to_owned(), what: what.to_owned() };
        let uri: ureq::http::Uri = url.parse().map_err(|e| bad(&format!("{e}")))?;
        let host = uri.host().ok_or_else(|| bad("it has no host"))?;
        let proxy = match uri.scheme_str() {
            Some("https") => &self.net.https_proxy,
            Some("http") => &self.net.http_proxy,
            _ => return Err(bad("it is not http, https or file")),
        };
        let direct = self.net.no_proxy.as_deref().is_some_and(|list| bypasses(list, host));
        let proxy = match proxy.as_deref().filter(|p| !p.is_empty() && !direct) {
            Some(proxy) => Some(ureq::Proxy::new(proxy).map_err(|_| bad("its proxy's address is wrong"))?),
            None => None,
        };
        let roots = match self.roots.get() {
            Some(roots) => roots.clone(),
            None => {
                let roots = roots::load(self.net.ca_file.as_deref())?;
                self.roots.get_or_init(|| roots).clone()
            }
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(proxy)
            .user_agent(concat!("p1/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(self.bounds.silence))
            .timeout_per_read(Some(self.bounds.silence))
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .build();
        Ok(config.new_agent())
    }

    fn explain(&self, url: &str, error: ureq::Error) -> Error {
        let url = url.to_owned();
        match error {
            ureq::Error::Timeout(_) => Error::Silence { url, bound: self.bounds.silence },
            ureq::Error::HostNotFound => {
                Error::Connection { url, cause: "the host's name has no address".to_owned() }
            }
            ureq::Error::BadUri(what) => Error::BadUrl { url, what },
            ureq::Error::Io(e) => match tls_cause(&e) {
                Some(cause) => Error::Tls { url, cause },
                None => Error::Connection { url, cause: e.to_string() },
            },
            e @ (ureq::Error::Tls(_) | ureq::Error::Rustls(_)) => Error::Tls { url, cause: e.to_string() },
            e @ (ureq::Error::TooManyRedirects | ureq::Error::Protocol(_) | ureq::Error::Http(_)) => {
                Error::Answer { url, what: e.to_string() }
            }
            e => Error::Connection { url, cause: e.to_string() },
        }
    }
}

/// What rustls said, when an I/O error carries it.
fn tls_cause(error: &std::io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref::<rustls::Error>().map(ToString::to_string)
}

/// On the thread: sends a head, chunks, and leaves the end to its caller.
fn transfer(agent: &Agent, url: &str, from: u64, send: &SyncSender<Message>) -> Result<(), ureq::Error> {
    let mut request = agent.get(url);
    if from > 0 {
        request = request.header("Range", format!("bytes={from}-"));
    }
    let mut answer = request.call()?;
    let header = |name: &str| answer.headers().get(name)?.to_str().ok().map(str::trim);
    let head = Head {
        status: answer.status().as_u16(),
        length: answer.body().content_length(),
        range_start: header("content-range")
            .and_then(|r| r.strip_prefix("bytes ")?.split('-').next()?.parse().ok()),
        // The other form, a date, is not worth reading: the usual back-off does.
        retry_after: header("retry-after").and_then(|s| s.parse().ok()).map(Duration::from_secs),
    };
    if send.send(Message::Head(head)).is_err() {
        return Ok(());
    }
    let mut body = answer.body_mut().as_reader();
    loop {
        let mut chunk = vec![0; CHUNK];
        let n = body.read(&mut chunk).map_err(ureq::Error::from)?;
        chunk.truncate(n);
        // Nobody listens any more: given up, or an error whose body does not matter.
        if n == 0 || send.send(Message::Chunk(chunk)).is_err() {
            return Ok(());
        }
    }
}

/// Whether `host` is in a `no_proxy` list.
fn bypasses(list: &str, host: &str) -> bool {
    let host = host.trim_matches(['[', ']']);
    let ip: Option<IpAddr> = host.parse().ok();
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        let name = entry.trim_start_matches("*.").trim_start_matches('.').to_ascii_lowercase();
        let network = entry.parse::<ipnet::IpNet>().ok();
        let host = host.to_ascii_lowercase();
        entry == "*"
            || host == name
            || host.strip_suffix(&name).is_some_and(|rest| rest.ends_with('.'))
            || ip.zip(network).is_some_and(|(ip, network)| network.contains(&ip))
    })
}

/// The path of a `file://` address; `None` for other addresses.
pub(super) fn local_path(url: &str) -> Result<Option<std::path::PathBuf>, Error> {
    let Some(rest) = url.strip_prefix("file://") else { return Ok(None) };
    let bad = |what: &str| Error::BadUrl { url: url.to_owned(), what: what.to_owned() };
    let path = rest.strip_prefix("localhost").unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(bad("a file's path begins with a slash: file:///path"));
    }
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.get(..2).and_then(|d| std::str::from_utf8(d).ok());
        let byte = digits
            .and_then(|d| u8::from_str_radix(d, 16).ok())
            .ok_or_else(|| bad("`%` without two digits"))?;
        bytes.push(byte);
        rest = &tail[2..];
    }
    let path = String::from_utf8(bytes).map_err(|_| bad("its path is not UTF-8"))?;
    Ok(Some(Path::new(&path).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_proxy_lists_are_read_as_curl_reads_them() {
        let list = "localhost, .corp.lan,10.0.0.0/8 ,Example.com";
        for host in ["localhost", "corp.lan", "a.corp.lan", "10.1.2.3", "example.com", "x.EXAMPLE.com"] {
            assert!(bypasses(list, host), "{host}");
        }
        for host in ["notexample.com", "11.0.0.1", "corp.lan.evil", "github.com"] {
            assert!(!bypasses(list, host), "{host}");
        }
        assert!(bypasses("*", "github.com"));
    }

    #[test]
    fn file_addresses_are_decoded() {
        let path = local_path("file:///srv/v1.34.1%2Bk3s1/k3s").unwrap().unwrap();
        assert_eq!(path, Path::new("/srv/v1.34.1+k3s1/k3s"));
        assert_eq!(local_path("https://x/").unwrap(), None);
        assert!(local_path("file://host/x").is_err());
        assert!(local_path("file:///x%2").is_err());
    }
}
