//! The cluster's secrets: those of the state folder, those that the spec gives, those that a server has.
//!
//! A cluster that runs has them on its servers, so none is made where one may have them: another token restarts
//! every node into a crash loop.

use std::path::PathBuf;
use std::time::Duration;

use super::World;
use crate::engine::StepError;
use crate::k3s::{self, Token, Tokens};
use crate::machines::MachineState;
use crate::os::files;
use crate::os::sync::lock;
use crate::redact::Redactor;
use crate::spec::{self, Node, TokenSource};
use crate::state::NodeMemory;

/// What is asked of a server: what k3s is configured with, or what it noted itself.
const ASK: &str = "\
f=/etc/rancher/k3s/config.yaml d=/var/lib/rancher/k3s/server
[ -r $f ] && while IFS= read -r line; do
  case $line in 'token: '* | 'agent-token: '*) printf 'config %s\\n' \"$line\" ;; esac
done <$f
for name in token agent-token; do
  [ -r $d/$name ] && IFS= read -r line <$d/$name && printf 'kept %s: %s\\n' \"$name\" \"$line\"
done
[ -d $d/db ] && echo data
echo end
";
/// A machine that runs has its sshd, before a run begins.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the state folder has.
enum Stored {
    There(Tokens),
    Missing,
    Damaged,
}

/// What a server has.
#[derive(Debug, PartialEq)]
enum Has {
    Tokens(Tokens),
    /// It never was one.
    Nothing,
    /// Data, and not what opens it.
    DataAlone,
}

/// What the spec gives: the server's token, and the workers' where the text has p1's own form.
struct Given {
    server: Token,
    agent: Option<Token>,
}

impl World {
    /// Knows the secrets that this cluster has by now: the spec's, the tokens, the keys. Those that are made or
    /// come to light later in this run it learns, with all its clones ([`World::learn_tokens`],
    /// [`World::learn_access`]).
    pub fn redactor(&self) -> Redactor {
        let read = |path: PathBuf| files::read_if_there(&path).ok().flatten().unwrap_or_default();
        self.redactor.learn(spec::secrets(&self.cluster));
        for path in [self.state.token(), self.state.former_token(), self.state.kept_token()] {
            self.learn_tokens(&read(path));
        }
        self.redactor.learn(self.token.clone());
        self.redactor.learn([read(self.state.key())]);
        self.learn_access(&read(self.state.kubeconfig()));
        self.redactor.clone()
    }

    /// The secrets of a file of tokens are known from here on: whatever stands behind the names, should it be
    /// damaged.
    pub fn learn_tokens(&self, text: &str) {
        self.redactor.learn(text.lines().map(|l| l.split_once('=').map_or(l, |(_, value)| value)));
    }

    /// The secrets of a kubeconfig are known from here on.
    pub fn learn_access(&self, kubeconfig: &str) {
        let Ok(access) = k3s::kubeconfig::access(kubeconfig) else { return };
        for pem in [access.key, access.cert] {
            self.redactor.learn([k3s::kubeconfig::encode(&pem), String::from_utf8_lossy(&pem).into_owned()]);
        }
    }
}

impl World {
    /// The cluster's secrets, if they were made: none where they are missing or damaged, and a server may have
    /// them.
    pub fn read_tokens(&self) -> Result<Option<Tokens>, StepError> {
        let Stored::There(tokens) = self.stored()? else { return Ok(None) };
        self.learn_tokens(&tokens.to_text());
        agree(&self.given()?, &tokens)?;
        self.note(|seen| seen.here.tokens = Some(tokens.clone()));
        Ok(Some(tokens))
    }

    /// The cluster's secrets, for a step: those that are there, else those of a server, which may still be
    /// booting, else new ones. The first caller makes them.
    pub fn tokens(&self) -> Result<Tokens, StepError> {
        let bound = self.cluster.timeouts.boot;
        self.find_or_make(bound, false, &mut |_| {})
    }

    /// The same before a run: servers that do not run are not waited for. `tell` hears what was amiss.
    pub fn tokens_of_now(&self, tell: &mut dyn FnMut(String)) -> Result<Tokens, StepError> {
        self.find_or_make(PATIENCE, true, tell)
    }

    fn find_or_make(
        &self,
        patience: Duration,
        now: bool,
        tell: &mut dyn FnMut(String),
    ) -> Result<Tokens, StepError> {
        let _one = lock(&self.held.making_tokens);
        if let Some(tokens) = self.read_tokens()? {
            return Ok(tokens);
        }
        let given = self.given()?;
        let tokens = match self.look_for_tokens(patience, now)? {
            Some((server, tokens)) => {
                agree(&given, &tokens)?;
                tell(format!("{}; its content was read back from {server}", self.amiss()?));
                tokens
            }
            None => {
                let made = Tokens::from_random(random()?, random()?);
                let kept = self.kept()?;
                if kept.is_some() {
                    tell(format!("the cluster's token is that of {}", self.state.kept_token().display()));
                }
                let made = kept.unwrap_or(made);
                match given {
                    Some(given) => Tokens { server: given.server, agent: given.agent.unwrap_or(made.agent) },
                    None => made,
                }
            }
        };
        self.learn_tokens(&tokens.to_text());
        files::write(&self.state.token(), tokens.to_text().as_bytes(), 0o600)?;
        self.note(|seen| seen.here.tokens = Some(tokens.clone()));
        Ok(tokens)
    }

    /// The secrets that a server has which runs, without writing anything; and what is amiss with those of
    /// the state folder.
    pub fn look_at_tokens(&self) -> Option<String> {
        if self.seen().here.tokens.is_some() {
            return None;
        }
        let (server, tokens) = self.look_for_tokens(PATIENCE, true).ok()??;
        self.learn_tokens(&tokens.to_text());
        self.note(|seen| seen.here.tokens = Some(tokens));
        Some(format!("{}, and {server} has its content", self.amiss().ok()?))
    }

    /// An error if the spec gives another token than these.
    pub fn may_have(&self, tokens: &Tokens) -> Result<(), StepError> {
        agree(&self.given()?, tokens)
    }

    fn amiss(&self) -> Result<String, StepError> {
        let path = self.state.token();
        Ok(match self.stored()? {
            Stored::Damaged => format!("{} is damaged", path.display()),
            _ => format!("{} is missing", path.display()),
        })
    }

    fn stored(&self) -> Result<Stored, StepError> {
        Ok(match files::read_if_there(&self.state.token()) {
            Ok(Some(text)) => Tokens::parse(&text).map_or(Stored::Damaged, Stored::There),
            Ok(None) => Stored::Missing,
            Err(e) if e.source.kind() == std::io::ErrorKind::InvalidData => Stored::Damaged,
            Err(e) => return Err(e.into()),
        })
    }

    /// What the spec gives, if it does.
    fn given(&self) -> Result<Option<Given>, StepError> {
        let (text, place) = match &self.cluster.k3s.token {
            None => return Ok(None),
            Some(TokenSource::File(path)) => {
                let text = files::read_if_there(path)?;
                (text, format!("the file {}", path.display()))
            }
            Some(TokenSource::Env(name)) => (self.token.clone(), format!("the variable {name}")),
        };
        let hint =
            "The spec's `k3s.token` names it. It is one line of letters, digits and `.:_-+/=@%,~!#^*`.";
        let Some(text) = text else {
            return Err(StepError::new(format!("{place} with the cluster's token is not there"), hint));
        };
        if let Some(both) = Tokens::parse(&text) {
            return Ok(Some(Given { server: both.server, agent: Some(both.agent) }));
        }
        match Token::parse(&text) {
            Some(server) => Ok(Some(Given { server, agent: None })),
            None => Err(StepError::new(format!("{place} holds no token"), hint)),
        }
    }

    /// The tokens of a server that answers, and its name. None where no server can have any; an error where
    /// one may have them and does not say.
    fn look_for_tokens(&self, patience: Duration, now: bool) -> Result<Option<(String, Tokens)>, StepError> {
        if self.seen().machines.is_empty() && self.state.exists() {
            self.look_at_machines()?;
        }
        let seen = self.seen();
        let mut unknown: Option<(&Node, String)> = None;
        for server in self.cluster.servers() {
            let machine = seen.machines.get(&server.name);
            let Some(machine) = machine.filter(|m| m.state != MachineState::Absent && !m.foreign) else {
                continue;
            };
            // Machines that k3s was never started on have nothing; one that existed before may have it from another folder.
            let unused = |m: NodeMemory| !m.joined && m.version.is_none();
            if server.ssh.is_none() && self.memory(&server.name).is_some_and(unused) {
                continue;
            }
            if now && machine.state != MachineState::Running {
                unknown.get_or_insert((server, format!("its machine is {}", machine.state)));
                continue;
            }
            let asked = self
                .on(server, |r| r.wait_for(patience, &mut |_| {}).map(|_| ()))
                .and_then(|()| self.script(server, "asking for the cluster's secrets", ASK));
            match asked.map(|text| parse(&text)) {
                Ok(Has::Tokens(tokens)) => return Ok(Some((server.name.clone(), tokens))),
                Ok(Has::Nothing) => {}
                Ok(Has::DataAlone) => {
                    unknown.get_or_insert((server, "it has data, and no token".to_owned()));
                }
                Err(error) if error.cancelled() => return Err(error),
                // One that nobody got into yet: why is what the user has to know.
                Err(error) if server.ssh.is_some() && self.memory(&server.name).is_none() => {
                    return Err(error);
                }
                Err(error) => {
                    unknown.get_or_insert((server, error.failure.cause));
                }
            }
        }
        let Some((server, why)) = unknown else { return Ok(None) };
        let path = self.state.token();
        Err(StepError::new(
            format!("{}, and {} could not be asked for it: {why}", self.amiss()?, server.name),
            format!(
                "It holds the secrets with which nodes join, and servers that run have them. `p1 start {}` and `p1 up` \
                 read them back. With new ones the cluster would not open its data, so none are made. A copy of {} \
                 does as well.",
                server.name,
                path.display()
            ),
        ))
    }
}

/// The cluster that there is has to have the token that the spec gives.
fn agree(given: &Option<Given>, tokens: &Tokens) -> Result<(), StepError> {
    match given {
        Some(given) if given.server != tokens.server => Err(StepError::new(
            "the cluster has another token than the spec's `k3s.token` gives",
            "The token opens the cluster's data, so it is not changed by starting k3s with another one. Give the one \
             that the cluster was made with, or leave `k3s.token` out; a new cluster (`p1 destroy`, `p1 up`) takes \
             the new one.",
        )),
        _ => Ok(()),
    }
}

/// What a server answered. It is data: only what has the form of a token is taken for one.
fn parse(text: &str) -> Has {
    let value = |name: &str| {
        let value = text.lines().find_map(|l| l.strip_prefix(name))?;
        Token::parse(value.trim().trim_matches(['"', '\'']))
    };
    // k3s notes the long form, `K10HASH::USER:SECRET`.
    let short = |token: Token| Token::parse(token.reveal().rsplit(':').next().unwrap_or_default());
    let kept = |name: &str| value(name).and_then(short);
    let server = value("config token: ").or_else(|| kept("kept token: "));
    let agent = value("config agent-token: ").or_else(|| kept("kept agent-token: "));
    match (server, agent) {
        (Some(server), Some(agent)) => Has::Tokens(Tokens { server, agent }),
        // One of somebody's, for both: k3s takes the one for the other where there is no other.
        (Some(server), None) => Has::Tokens(Tokens { agent: server.clone(), server }),
        _ if text.lines().any(|l| l == "data") => Has::DataAlone,
        _ => Has::Nothing,
    }
}

impl World {
    /// Keeps the secrets that open a datastore which stays when the cluster goes: only the state folder has
    /// them. Where; none if there is nothing to be kept.
    pub fn keep_token(&self) -> Result<Option<std::path::PathBuf>, StepError> {
        if !self.cluster.has_own_datastore() || self.cluster.k3s.token.is_some() {
            return Ok(None);
        }
        let Stored::There(tokens) = self.stored()? else { return Ok(None) };
        let path = self.state.kept_token();
        files::write(&path, tokens.to_text().as_bytes(), 0o600)?;
        Ok(Some(path))
    }

    /// What was kept so.
    fn kept(&self) -> Result<Option<Tokens>, StepError> {
        if !self.cluster.has_own_datastore() || self.cluster.k3s.token.is_some() {
            return Ok(None);
        }
        Ok(files::read_if_there(&self.state.kept_token())?.and_then(|text| Tokens::parse(&text)))
    }
}

/// Bytes that nobody can guess.
pub fn random() -> Result<[u8; 32], StepError> {
    use crate::os::files::At;
    use std::io::Read;
    let (path, mut bytes) = (std::path::Path::new("/dev/urandom"), [0; 32]);
    std::fs::File::open(path).and_then(|mut f| f.read_exact(&mut bytes)).at("read", path)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_answer_is_read_whichever_form_it_has() {
        let (server, agent) = ("11".repeat(32), "22".repeat(32));
        let both = Tokens::parse(&format!("server={server}\nagent={agent}\n")).unwrap();
        let config = format!("config token: \"{server}\"\nconfig agent-token: \"{agent}\"\n");
        let kept = format!("kept token: K10aa::server:{server}\nkept agent-token: K10aa::node:{agent}\n");
        assert_eq!(
            parse(&format!("{config}kept token: K10aa::server:other\ndata\nend\n")),
            Has::Tokens(both.clone())
        );
        assert_eq!(parse(&format!("{kept}data\nend\n")), Has::Tokens(both));
        assert_eq!(parse("end\n"), Has::Nothing);
        assert_eq!(parse("data\nend\n"), Has::DataAlone);
        assert_eq!(parse("config token: $(reboot)\nconfig agent-token: x\ndata\nend\n"), Has::DataAlone);
    }
}
