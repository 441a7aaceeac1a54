//! Serves made-up, moving flows at 127.0.0.1:9099 until killed, to look at the command line without an agent:
//! `cargo run -p orb8-cli --example fake-agent &`, then `orb8 --agent 127.0.0.1:9099 top`.

#![allow(unreachable_pub, missing_docs, dead_code, reason = "shared with the tests")]

#[path = "../tests/support/fake_agent.rs"]
mod fake_agent;

fn main() {
    let (address, _asked) = fake_agent::serve_at(
        fake_agent::Story::Live,
        std::net::SocketAddr::from(([127, 0, 0, 1], 9099)),
    );
    println!("a fake agent answers at {address}; ^C ends it");
    loop {
        std::thread::park();
    }
}
