//! stub
use std::time::Duration;
#[derive(Debug, thiserror::Error)]
#[error("x")]
pub struct Error;
impl crate::explain::Explain for Error {}
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeStatus {
    pub name: String,
    pub ready: bool,
    pub reason: String,
    pub message: String,
    pub internal_ip: Option<String>,
    pub version: String,
}
#[derive(Clone, Debug)]
pub struct EventLine {
    pub object: String,
}
impl std::fmt::Display for EventLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "x")
    }
}
pub struct Client;
impl Client {
    pub fn new(_: &str, _: Option<&str>, _: Duration) -> Result<Self, Error> {
        Err(Error)
    }
    pub fn nodes(&self) -> Result<Vec<NodeStatus>, Error> {
        Err(Error)
    }
    pub fn events(&self, _: usize) -> Result<Vec<EventLine>, Error> {
        Err(Error)
    }
}
