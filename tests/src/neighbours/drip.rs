//! A good client's latencies among clients that drip, beside its own alone.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::trouble::Attack;
use crate::client::{Client, PLAIN};
use crate::server::Server;

/// Latencies of one kind of request.
#[derive(Debug, Clone)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    /// What so many in a thousand do not exceed.
    #[must_use]
    pub fn per_mille(&self, part: usize) -> Duration {
        self.0[(self.0.len() * part / 1000).min(self.0.len() - 1)]
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

/// What came of it.
pub struct Outcome {
    /// 4 KiB and 1 MiB, alone.
    pub alone: [Latencies; 2],
    /// The same among 32 clients that drip, half of them sending and half of them reading.
    pub among: [Latencies; 2],
}

/// Lengths of a good client's reads and writes.
pub const LENGTHS: [u32; 2] = [4096, 1 << 20];

impl Outcome {
    /// Reads and writes for so long among clients that drip, and alone before and after that, each a tenth of the time.
    /// The server's threads look for nothing before they sleep, which they do only for a client that is alone.
    pub fn of(lasting: Duration) -> Result<Outcome> {
        let disk = crate::disk::Disk::sparse(64 << 20);
        let server = Server::builder()
            .export(format!("good={}", disk.path().display()))
            .export("bad=memory:64M")
            .args(&["--busy-poll", "0"])
            .unix()
            .start();
        let mut client = Client::try_connect(server.endpoint(), "good")?;
        let mut alone = measured(&mut client, lasting / 10);
        let attack = Attack::dripping(server.endpoint());
        let among = measured(&mut client, lasting);
        drop(attack);
        for (alone, after) in alone.iter_mut().zip(measured(&mut client, lasting / 10)) {
            alone.0.extend(after.0);
            alone.0.sort_unstable();
        }
        Ok(Outcome { alone, among })
    }
}

/// Reads and writes of each length in turn.
fn measured(client: &mut Client, lasting: Duration) -> [Latencies; 2] {
    let mut found = [Vec::new(), Vec::new()];
    let began = Instant::now();
    while began.elapsed() < lasting {
        for (len, latencies) in LENGTHS.iter().zip(&mut found) {
            let data = vec![1; *len as usize];
            let asked = Instant::now();
            assert_eq!(client.write(PLAIN, 0, &data), common::proto::WireError::OK);
            latencies.push(asked.elapsed());
            let asked = Instant::now();
            assert_eq!(client.read(0, *len).map(|data| data.len()), Ok(*len as usize));
            latencies.push(asked.elapsed());
        }
    }
    found.map(|mut latencies| {
        latencies.sort_unstable();
        Latencies(latencies)
    })
}
