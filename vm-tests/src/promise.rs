//! The files of the guest program `promise`, and what can be held against it: files say by themselves what they
//! ought to contain, and every one that was made durable was announced as `#N promised NAME VERSION at UPTIME`. What is
//! announced must be there after any crash, whole, in that version or a later one.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::chance::Chance;

/// A record of a log file, which grows by one per promise.
pub const RECORD: usize = 4096;

/// The last promise about each file.
#[derive(Debug, Clone, Default)]
pub struct Promises {
    versions: BTreeMap<String, u64>,
}

/// What became of promises.
#[derive(Debug)]
pub struct Verdict {
    /// Promises that were to be kept.
    pub promised: usize,
    /// A line for each that was not, and for each file that is not whole.
    pub lost: Vec<String>,
}

impl Verdict {
    /// Fails, with the lines, if a promise was broken.
    pub fn kept(&self, context: &str) -> anyhow::Result<()> {
        let Verdict { promised, lost } = self;
        println!("{context}: {promised} promised, {} lost", lost.len());
        anyhow::ensure!(lost.is_empty(), "{context} lost:\n{}", lost.join("\n"));
        Ok(())
    }
}

impl Promises {
    /// Adds what the program announced. A line cut short by the power is not among a log's lines.
    pub fn hear(&mut self, log: &str) {
        self.hear_if(log, |_| true);
    }

    /// Takes apart what was promised until a time of the guest's, in seconds since its boot, and what later.
    pub fn split(log: &str, uptime: f64) -> (Promises, Promises) {
        let (mut until, mut later) = (Promises::default(), Promises::default());
        until.hear_if(log, |at| at <= uptime);
        later.hear_if(log, |at| at > uptime);
        (until, later)
    }

    fn hear_if(&mut self, log: &str, counts: impl Fn(f64) -> bool) {
        for line in log.lines() {
            let words: Vec<&str> = line.split(' ').skip_while(|word| *word != "promised").collect();
            if let ["promised", name, version, "at", at] = words[..]
                && let (Ok(version), Ok(at)) = (version.parse::<u64>(), at.parse())
                && counts(at)
            {
                let known = self.versions.entry(name.to_owned()).or_default();
                *known = version.max(*known);
            }
        }
    }

    /// How many files were promised.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// True if nothing was.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// A line for each, as `promise verify` reads them.
    pub fn list(&self) -> String {
        self.versions.iter().fold(String::new(), |mut list, (name, version)| {
            // Writing to a string cannot fail.
            let _ = writeln!(list, "{name} {version}");
            list
        })
    }
}

/// What a file of this name and version contains: its own description, then noise that nothing else contains.
pub fn contents(name: &str, version: u64, len: usize) -> Vec<u8> {
    let mut bytes = format!("{name} {version} {len}\n").into_bytes();
    let mut noise =
        Chance::from(name.bytes().fold(version, |sum, byte| sum * 31 % 1_000_003 + u64::from(byte)));
    while bytes.len() < len {
        bytes.extend(noise.draw().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Reads a file's own description of it and tells its version if it is what it says.
pub fn whole(name: &str, bytes: &[u8]) -> Result<u64, String> {
    let Some(end) = bytes.iter().take(200).position(|byte| *byte == b'\n') else {
        return Err(format!("no description in its {} bytes", bytes.len()));
    };
    let said = String::from_utf8_lossy(&bytes[..end]);
    let mut words = said.split(' ');
    let (told, version, len) = (words.next(), words.next(), words.next());
    let number = |word: Option<&str>| word.and_then(|word| word.parse::<u64>().ok());
    let (Some(version), Some(len)) = (number(version), number(len)) else {
        return Err(format!("describes itself as {said:?}"));
    };
    if told != Some(name) || len != bytes.len() as u64 {
        return Err(format!("has {} bytes and describes itself as {said:?}", bytes.len()));
    }
    let expected = contents(name, version, bytes.len());
    match bytes.iter().zip(&expected).position(|(found, right)| found != right) {
        Some(at) => Err(format!("version {version} is wrong from byte {at} of {len} on")),
        None => Ok(version),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_whole() {
        let good = contents("a", 7, 5000);
        assert_eq!(whole("a", &good), Ok(7));
        assert!(whole("b", &good).is_err());
        assert!(whole("a", &good[..4999]).is_err());
        assert!(whole("a", &[]).is_err());
        let mut bad = good.clone();
        bad[4096..].fill(0);
        assert!(whole("a", &bad).is_err_and(|why| why.contains("from byte 4096")));
    }

    #[test]
    fn the_last_promise_counts() {
        let mut promises = Promises::default();
        let log = "#1 promised a 5 at 1.0\n#2 promised b 1 at 2.0\nnoise\n#3 promised a 6 at 3.5\n";
        promises.hear(log);
        assert_eq!(promises.list(), "a 6\nb 1\n");
        let (until, later) = Promises::split(log, 2.0);
        assert_eq!((until.list(), later.list()), ("a 5\nb 1\n".into(), "a 6\n".into()));
    }
}
