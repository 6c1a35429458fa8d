//! The planted faults, by the rule each breaks.

/// One planted fault: a replacement of one piece of the server's source text.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    /// The rule it breaks: an ID of the durability contract.
    pub(crate) rule: &'static str,
    /// Below `nbd-server/src`.
    pub(crate) file: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
}

macro_rules! mutants {
    ($($name:literal $rule:literal $file:ident: $from:literal => $to:literal;)*) => {
        [$(Mutant { name: $name, rule: $rule, file: $file, from: $from, to: $to }),*]
    };
}

const RECEIVE: &str = "session/receive.rs";
const REPLIES: &str = "session/replies.rs";
const ORDER: &str = "layer/order.rs";
const SYNCS: &str = "durability/syncs.rs";
const STABLE: &str = "durability/stable.rs";
const EARLY: &str = "durability/early.rs";
const WRITER: &str = "durability/early/writer.rs";
const CACHE: &str = "durability/early/cache.rs";
const MODES: &str = "durability.rs";
const EXPORT: &str = "export.rs";

/// Every planted fault.
pub(crate) const MUTANTS: &[Mutant] = &mutants! {
    "half-received-write-runs" "C1" RECEIVE:
        "return Poll::Ready(if received == 0 { Err(cut_short()) } else { Ok(()) });" =>
        "if received == 0 { *filled = data.len(); } return Poll::Ready(Ok(()));";
    "overlap-order-ignored" "C2 C4" ORDER:
        "if before.iter().any(|earlier| earlier.overlaps(&rest[0]))" =>
        "if before.len() > 1_000_000";
    "some-places-in-line-wrong" "C2" ORDER:
        "line.next += 1;" =>
        "line.next += 1; let at = if line.next % 2 == 0 { at + len } else { at };";
    "read-misses-the-cache" "C3" EARLY:
        "overlay.apply(at, &mut buf);" =>
        "";
    "read-looks-at-the-cache-late" "C3" EARLY:
        "buf = below.read(at, buf).await?;\n            }" =>
        "buf = below.read(at, buf).await?;\n            }\n            let overlay = self.lock().cache.overlay(&(at..at + buf.len() as u64));";
    "flush-joins-a-running-sync" "C5" SYNCS:
        "then_some(state.started + 1)" =>
        "then_some(state.started.max(1))";
    "sync-covers-what-came-after-it-began" "C5" SYNCS:
        "Ok(()) => state.durable = state.durable.max(self.covers)," =>
        "Ok(()) => state.durable = state.written,";
    "flush-ignored" "C5" STABLE:
        "Box::pin(self.syncs.sync(below))" =>
        "Box::pin(async { let _ = below; self.syncs.check() })";
    "first-flush-trusts-the-last-server" "C5" SYNCS:
        "written: 1," =>
        "written: 0,";
    "zeroes-not-covered-by-flush" "C5" STABLE:
        "let zeroed = below.zero(at, len, hole, Fua::No).await;\n            self.syncs.wrote();" =>
        "let zeroed = below.zero(at, len, hole, Fua::No).await;";
    "fua-ignored-on-write" "C6" STABLE:
        "let fua = self.raise(fua);" =>
        "let fua = self.raise(if fua == Fua::Yes { Fua::No } else { fua });";
    "fua-ignored-on-zeroes" "C6" STABLE:
        "zeroed?;" =>
        "return zeroed;";
    "fua-ignored-on-trim" "C6" STABLE:
        "trimmed?;" =>
        "return trimmed;";
    "writethrough-writes-back" "mode 1" MODES:
        "Mode::Writethrough => layered(stable(Fua::Yes), storage)," =>
        "Mode::Writethrough => layered(stable(Fua::No), storage),";
    "failed-sync-forgotten" "E1" SYNCS:
        "self.poison = Some(error.to_string());" =>
        "";
    "failed-durable-write-forgotten" "E1" SYNCS:
        "Err(error) if is_sync_failure(&error) => {\n                state.poison(&error);" =>
        "Err(error) if is_sync_failure(&error) => {";
    "success-not-checked-against-poison" "E2" SYNCS:
        "Ok(()) => state.check()," =>
        "Ok(()) => Ok(()),";
    "lost-write-back-forgotten" "E1" WRITER:
        "early.lost(&error);" =>
        "let _ = error;";
    "lost-write-back-dropped" "E3" WRITER:
        "early.lock().cache.came_back(id);" =>
        "early.lock().cache.arrived(id);";
    "flush-forgets-what-is-leaving" "early C5" CACHE:
        "|| self.leaving.iter().any(|batch| batch.oldest <= number)" =>
        "";
    "flush-forgets-what-was-replaced" "early C5" CACHE:
        "let oldest = self.cut(&range).unwrap_or(self.last);" =>
        "self.cut(&range); let oldest = self.last;";
    "flush-does-not-drain" "early C5" EARLY:
        "self.drain_all().await?;" =>
        "";
    "fua-does-not-drain" "early C2" EARLY:
        "self.drain(at..at + data.len() as u64).await?;" =>
        "";
    "trim-does-not-drain" "early C2" EARLY:
        "self.drain(at..at + len).await?;\n            self.judge(below.trim(" =>
        "self.judge(below.trim(";
    "newer-data-overtakes-what-is-leaving" "early C2" CACHE:
        "find(|extent| !self.leaves(&(extent.at..extent.end())))?.clone()" =>
        "next()?.clone()";
    "memory-without-bound" "I7" EARLY:
        "if state.cache.held() + len > self.limits.dirty_max" =>
        "if state.cache.held() + len > usize::MAX - 1";
    "dirty-data-never-ages" "I7" WRITER:
        "early.lock().cache.expedite(*armed);" =>
        "let _ = *armed;";
    "stop-does-not-sync" "I8" EXPORT:
        "self.device.flush().await?;" =>
        "";
    "answer-forgotten" "I10" REPLIES:
        "self.answer(WireError::EIO, None);" =>
        "";
    "answer-to-the-wrong-request" "I10" REPLIES:
        "cookie: self.cookie }.encode()" =>
        "cookie: self.cookie ^ 1 }.encode()";
};
