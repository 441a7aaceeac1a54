//! placeholder
use std::{net::SocketAddr, time::Instant};
use crate::identity::Limit;
#[derive(Debug, Clone, Copy, Default)]
pub struct ConntrackLimits {}
#[derive(Debug, Clone, Copy)]
pub struct Tuple { pub protocol: u8, pub src: SocketAddr, pub dst: SocketAddr }
#[derive(Debug, Clone, Copy)]
pub struct Translation { pub client: SocketAddr, pub asked: SocketAddr, pub backend: SocketAddr, pub towards_backend: bool }
#[derive(Debug)]
pub struct Conntrack {}
impl Conntrack {
    pub fn open(_: ConntrackLimits) -> Result<Self, std::io::Error> { Ok(Self {}) }
    pub fn refresh(&mut self, _: Instant) {}
    pub fn known(&mut self, _: &Tuple) -> Option<Translation> { None }
    pub fn ask(&mut self, _: &Tuple) -> Option<Translation> { None }
    pub fn limits(&self) -> Vec<Limit> { Vec::new() }
}
