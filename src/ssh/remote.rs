//! A node as the rest of p1 sees it: connected when needed, reconnected when a connection was lost.

use std::io::Read;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::{
    Bound, Endpoint, Error, Given, Login, Output, Place, Root, Session, Tunnel, Upload, connect, wait_for,
};
use crate::os::Cancel;

/// For a session there is to show that the node is still behind it.
const ALIVE: Duration = Duration::from_secs(5);

/// The way to a node. Owns the login and at most one session; to be used by one thread at a time.
pub struct Remote {
    login: Login,
    cancel: Cancel,
    session: Option<Session>,
    /// How to log in where the login's own user is not let in.
    instead: Option<Login>,
}

impl Remote {
    /// Does not connect yet.
    pub fn new(login: Login, cancel: Cancel) -> Self {
        Self { login, cancel, session: None, instead: None }
    }

    /// So where the login's own user is refused: somebody may have closed root's way in, or it never was open.
    #[must_use]
    pub fn or(mut self, login: Login) -> Self {
        self.instead = Some(login);
        // Whether root is let in does not change while a machine boots.
        self.login.options.refused = Duration::from_secs(1);
        self
    }

    fn turn_to_other(&mut self, error: &Error) -> bool {
        if !matches!(error, Error::AuthRefused { .. }) {
            return false;
        }
        let Some(login) = self.instead.take() else { return false };
        self.login = login;
        true
    }

    /// Where the node is.
    pub fn endpoint(&self) -> &Endpoint {
        &self.login.endpoint
    }

    /// The session; made by one attempt to log in if there is none that works.
    pub fn session(&mut self) -> Result<&mut Session, Error> {
        let session = match self.session.take() {
            Some(session) if !session.broken() => session,
            _ => match connect(&self.login, &self.cancel) {
                Err(error) if self.turn_to_other(&error) => connect(&self.login, &self.cancel)?,
                result => result?,
            },
        };
        Ok(self.session.insert(session))
    }

    /// [`wait_for`]: tries to log in until it works. A session there is gets tried first, because
    /// the node may have been restarted under it.
    pub fn wait_for(
        &mut self,
        bound: Duration,
        on_wait: &mut dyn FnMut(&Error),
    ) -> Result<&mut Session, Error> {
        let start = Instant::now();
        let mut session = self.session.take().filter(|session| !session.broken());
        if let Some(old) = &mut session
            && old.exec(":", b"", ALIVE.min(bound), &mut |_| {}).is_err()
        {
            session = None;
        }
        let session = match session {
            Some(session) => session,
            None => match wait_for(&self.login, bound.saturating_sub(start.elapsed()), &self.cancel, on_wait)
            {
                Err(error) if self.turn_to_other(&error) => {
                    wait_for(&self.login, bound.saturating_sub(start.elapsed()), &self.cancel, on_wait)?
                }
                result => result?,
            },
        };
        Ok(self.session.insert(session))
    }

    /// Calls `work`; once more if the connection turns out to be lost before the node has begun, as
    /// it is when the node was restarted since it was last used.
    fn once<T>(&mut self, mut work: impl FnMut(&mut Session) -> Result<T, Error>) -> Result<T, Error> {
        match work(self.session()?) {
            Err(Error::Lost { started: false, .. }) => work(self.session()?),
            result => result,
        }
    }

    /// Calls `work`, which may be done twice; once more if the connection failed.
    pub(super) fn again<T>(
        &mut self,
        mut work: impl FnMut(&mut Session) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match work(self.session()?) {
            Err(error) if error.connection() => work(self.session()?),
            result => result,
        }
    }

    /// [`Session::exec`].
    pub fn exec(
        &mut self,
        command: &str,
        stdin: &[u8],
        bound: impl Into<Bound>,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        let bound = bound.into();
        self.once(|session| session.exec(command, stdin, bound, on_output))
    }

    /// [`Session::exec_as`] root.
    pub fn exec_as_root(
        &mut self,
        command: &str,
        stdin: &[u8],
        bound: Bound,
        on_output: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        self.once(|session| session.exec_as(true, command, stdin, bound, on_output))
    }

    /// [`Session::script`].
    pub fn script(
        &mut self,
        what: &str,
        script: &str,
        root: bool,
        bound: impl Into<Bound>,
        on_line: &mut dyn FnMut(&str),
    ) -> Result<Output, Error> {
        let bound = bound.into();
        self.once(|session| session.script(what, script, root, bound, on_line))
    }

    /// [`Session::upload`], once more from its start if the connection is lost.
    pub fn upload(
        &mut self,
        upload: &Upload<'_>,
        bound: impl Into<Bound>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Output, Error> {
        let bound = bound.into();
        self.again(|session| session.upload(upload, bound, progress))
    }

    /// [`Session::read_file`], once more if the connection is lost.
    pub fn read_file(&mut self, path: &str, max: u64, bound: impl Into<Bound>) -> Result<Vec<u8>, Error> {
        let bound = bound.into();
        self.again(|session| session.read_file(path, max, bound))
    }

    /// [`Session::stream`].
    pub fn stream(
        &mut self,
        what: &str,
        script: &str,
        bound: Bound,
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Output, Error> {
        self.once(|session| session.stream(what, script, bound, on_bytes))
    }

    /// [`Session::sha256`], once more if the connection is lost.
    pub fn sha256(&mut self, path: &str, bound: impl Into<Bound>) -> Result<Option<String>, Error> {
        let bound = bound.into();
        self.again(|session| session.sha256(path, bound))
    }

    /// [`Session::give`].
    pub fn give(
        &mut self,
        to: Place<'_>,
        name: &str,
        archive: &mut dyn Read,
        bound: Bound,
        on_sent: &mut dyn FnMut(u64),
    ) -> Result<String, Error> {
        self.once(|session| session.give(to, name, archive, bound, on_sent))
    }

    /// [`Session::take`].
    pub fn take(
        &mut self,
        from: Place<'_>,
        bound: Bound,
        on_begin: &mut dyn FnMut(Given),
        on_bytes: &mut dyn FnMut(&[u8]),
    ) -> Result<Vec<String>, Error> {
        self.once(|session| session.take(from, bound, on_begin, on_bytes))
    }

    /// A free port of this host that leads to `host:port` as the node sees it, over a session of its own.
    pub fn tunnel(&self, host: &str, port: u16) -> Result<Tunnel, Error> {
        Tunnel::open(connect(&self.login, &self.cancel)?, None, host, port)
    }

    /// The same from a port that somebody listens at already, and goes on to when this one has ended.
    pub fn tunnel_from(&self, listener: &TcpListener, host: &str, port: u16) -> Result<Tunnel, Error> {
        Tunnel::open(connect(&self.login, &self.cancel)?, Some(listener), host, port)
    }

    /// [`Remote::replace_keys`], and makes `key` a way in for root too, where sshd lets root in by a
    /// key: then the Remote is root's from here on, and no command goes through sudo, which costs
    /// 0.3 s each under emulation. True if it is; false where only the login user can get in.
    ///
    /// It opens no new door: whoever holds the key is root already, by the login user's sudo. Where sudo asks for a
    /// password it would open one, and the key is the login user's alone.
    pub fn take_over(
        &mut self,
        key: PathBuf,
        public: &str,
        remove: &[&str],
        bound: Duration,
    ) -> Result<bool, Error> {
        let user = self.login.endpoint.user.clone();
        if self.login.options.password.is_some() {
            return self.replace_keys(key, public, remove, bound).map(|()| false);
        }
        self.again(|session| session.add_keys_of(&user, public, bound))?;
        let mut login = self.login.clone();
        login.keys = vec![key.clone()];
        login.endpoint.user = "root".to_owned();
        login.options.root = Some(Root::Already);
        match connect(&login, &self.cancel) {
            Ok(mut session) => {
                session.remove_keys_of(&user, public, remove, bound)?;
                self.login = login;
                self.session = Some(session);
                Ok(true)
            }
            Err(Error::AuthRefused { .. }) => self.replace_keys(key, public, remove, bound).map(|()| false),
            Err(error) => Err(error),
        }
    }

    /// Takes the key of `public` away from `user` and from root, with what was made for it alone.
    pub fn remove_key(&mut self, user: &str, public: &str, bound: Duration) -> Result<(), Error> {
        self.again(|session| session.remove_key(user, public, bound))
    }

    /// Makes `key` a way in and takes the others in `remove` away, then logs in by `key` alone.
    /// `public` is the line that goes with `key`; an entry of `remove` is a piece of the line to go,
    /// such as its base64 or its comment.
    ///
    /// The old keys stay until a second login has proven the new one, so that a failure at any
    /// point leaves a way in. Repeating it does no harm.
    pub fn replace_keys(
        &mut self,
        key: PathBuf,
        public: &str,
        remove: &[&str],
        bound: Duration,
    ) -> Result<(), Error> {
        self.again(|session| session.add_key(public, bound))?;
        let mut login = self.login.clone();
        login.keys = vec![key];
        let mut session = connect(&login, &self.cancel)?;
        session.remove_keys(public, remove, bound)?;
        self.login = login;
        self.session = Some(session);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_may_be_handed_from_thread_to_thread() {
        fn send<T: Send>() {}
        send::<Remote>();
        send::<Tunnel>();
    }
}
