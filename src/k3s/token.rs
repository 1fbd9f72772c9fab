//! The secrets with which nodes join.
//!
//! k3s knows two: the server token, which is as good as cluster admin and encrypts the cluster's
//! bootstrap data, and the agent token, which only lets a worker join (docs.k3s.io/cli/token). A
//! server's configuration has both; a worker gets the agent token only, as its `token`. Both are
//! made before anything starts, in the short form: it is the only one the first server accepts,
//! and agents of v1.21 and later take it as the password of the user `node` (`pkg/agent/run.go`).

use crate::os::hash::hex;
use crate::spec::Role;
use std::fmt;

/// A secret. It shows itself only when asked by [`Token::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// 64 hex digits from 32 random bytes.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        Self(hex(&bytes))
    }

    /// A token as it was stored or read back from a node, of either form. `None` for what cannot be
    /// one: empty, or with characters that neither k3s' own tokens have nor what people make them with (base64).
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let good = |c: char| c.is_ascii_alphanumeric() || ".:_-+/=@%,~!#^*".contains(c);
        (!text.is_empty() && text.chars().all(good)).then(|| Self(text.to_owned()))
    }

    /// The secret itself, for a 0600 file.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The two secrets of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Lets servers join; a cluster admin's secret.
    pub server: Token,
    /// Lets workers join.
    pub agent: Token,
}

impl Tokens {
    /// New ones, from random bytes of the kernel's.
    pub fn from_random(server: [u8; 32], agent: [u8; 32]) -> Self {
        Self { server: Token::from_random(server), agent: Token::from_random(agent) }
    }

    /// For showing what is made with them.
    pub fn placeholder() -> Self {
        Self { server: Token("THE-SERVER-TOKEN".into()), agent: Token("THE-AGENT-TOKEN".into()) }
    }

    /// What a node of that role has as its `token`.
    pub fn of(&self, role: Role) -> &Token {
        match role {
            Role::Server => &self.server,
            Role::Worker | Role::None => &self.agent,
        }
    }

    /// As text for a 0600 file; [`Tokens::parse`] reads it back.
    pub fn to_text(&self) -> String {
        format!("server={}\nagent={}\n", self.server.0, self.agent.0)
    }

    /// What [`Tokens::to_text`] wrote; `None` when it is something else.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            let value = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix('='))?;
            Token::parse(value)
        };
        Some(Self { server: field("server")?, agent: field("agent")? })
    }

    /// `text` without the secrets, for logs and evidence.
    pub fn redact(&self, text: &str) -> String {
        text.replace(&self.server.0, "***").replace(&self.agent.0, "***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_their_file_and_never_show_themselves() {
        let tokens = Tokens::from_random([0xa5; 32], [0x0f; 32]);
        let text = tokens.to_text();
        assert_eq!(Tokens::parse(&text).unwrap(), tokens);
        assert_eq!(Tokens::parse("server=abc\n"), None);
        assert_eq!(Tokens::parse("server=a b\nagent=c\n"), None);

        let secret = "a5".repeat(32);
        assert!(text.contains(&secret));
        let shown = format!("{tokens:?} {} {}", tokens.server, tokens.redact(&text));
        assert!(!shown.contains(&secret), "{shown}");
        assert!(shown.ends_with("server=***\nagent=***\n"), "{shown}");
        assert_eq!(tokens.of(Role::Worker).reveal(), "0f".repeat(32));
    }

    #[test]
    fn the_long_form_is_a_token_too() {
        assert!(Token::parse("K10abc::server:def\n").is_some());
        assert!(Token::parse("$(id)").is_none());
    }
}
