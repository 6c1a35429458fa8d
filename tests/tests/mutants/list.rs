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

const SESSION: &str = "session.rs";
const RECEIVE: &str = "session/receive.rs";
const REPLIES: &str = "session/replies.rs";
const ORDER: &str = "layer/order.rs";
const SYNCS: &str = "durability/syncs.rs";
const STABLE: &str = "durability/stable.rs";
const EARLY: &str = "durability/early.rs";
const WRITER: &str = "durability/early/writer.rs";
const CACHE: &str = "durability/early/cache.rs";
const MODES: &str = "durability/modes.rs";
const GATE: &str = "durability/gate.rs";
const EPOCH: &str = "durability/epoch.rs";
const CARELESS: &str = "durability/careless.rs";

/// Every planted fault.
pub(crate) const MUTANTS: &[Mutant] = &mutants! {
    "half-received-write-runs" "C1" RECEIVE:
        "if *filled < data.len() {" =>
        "if *filled == 0 {";
    "half-received-long-write-runs" "C1" RECEIVE:
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
        "state.durable = state.durable.max(self.covers);" =>
        "state.durable = state.written;";
    "flush-ignored" "C5" STABLE:
        "Box::pin(self.syncs.sync(below))" =>
        "Box::pin(async { let _ = below; self.syncs.check() })";
    "first-flush-trusts-the-last-server" "C5" SYNCS:
        "written: 1," =>
        "written: 0,";
    "zeroes-not-covered-by-flush" "C5" STABLE:
        "let zeroed = below.zero(at, len, how, Fua::No).await;\n            self.syncs.wrote(len);" =>
        "let zeroed = below.zero(at, len, how, Fua::No).await;";
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
        "writethrough: stable(Fua::Yes)," =>
        "writethrough: stable(Fua::No),";
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
        "early.lock().cache.came_back();" =>
        "drop(early.lock().cache.arrived());";
    "flush-forgets-what-is-leaving" "early C5" CACHE:
        "|| self.leaving.values().any(|run| run.oldest <= number)" =>
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
    "reads-see-what-is-leaving-over-what-is-newer" "early C2" CACHE:
        "older.chain(newer)" =>
        "newer.chain(older)";
    "memory-without-bound" "I7" EARLY:
        "if state.cache.held() + len > self.limits.dirty_max" =>
        "if state.cache.held() + len > usize::MAX - 1";
    "some-of-a-batch-forgotten" "early C5" WRITER:
        "settle(early, below.write_many(pieces).await);" =>
        "settle(early, below.write_many(pieces.into_iter().take(1).collect()).await);";
    "dirty-data-never-ages" "I7" WRITER:
        "early.lock().cache.expedite(*armed);" =>
        "let _ = *armed;";
    "stop-does-not-sync" "I8" MODES:
        "self.settle().await?;" =>
        "";
    "stop-forgets-what-unsafe-wrote" "I8" CARELESS:
        "self.syncs.wrote(bytes);" =>
        "";
    "change-of-mode-does-not-settle" "change" MODES:
        "self.settle().await.map_err(unstable)?;\n        self.rest()" =>
        "self.rest()";
    "change-of-mode-does-not-wait" "change" GATE:
        "if state.inside == 0 { Poll::Ready(()) }" =>
        "if state.inside < 1_000 { Poll::Ready(()) }";
    "change-of-mode-lets-requests-pass" "change" GATE:
        "if state.closed {" =>
        "if false {";
    "change-of-mode-despite-a-loss" "change E1" MODES:
        "let settled = self.early_ack.flush().await;" =>
        "let settled = self.early_ack.flush().await.or_else(|_| Ok(()));";
    "loss-keeps-its-epoch" "I9" GATE:
        "state.record.epoch = self.store.fresh();" =>
        "";
    "loss-is-not-put-on-record" "I9" MODES:
        "if told.is_err() && self.syncs.is_poisoned()" =>
        "if false && told.is_err()";
    "acknowledged-before-it-is-on-record" "I9" GATE:
        "self.kept.held >= held && self.keeping" =>
        "self.record.held >= held && self.keeping";
    "record-that-is-being-kept-ignored" "I9" GATE:
        "&& self.keeping.is_none_or(|record| record.held >= held)" =>
        "";
    "rests-while-data-is-unstable" "I9" GATE:
        "if state.inside > 0 || !settled()" =>
        "let _ = settled; if state.inside > 0";
    "rests-while-requests-are-under-way" "I9" GATE:
        "if state.inside > 0 || !settled()" =>
        "if !settled()";
    "early-ack-taken-for-the-kernels" "I9" MODES:
        "(Mode::EarlyAck, Fua::No) => Held::Server," =>
        "(Mode::EarlyAck, Fua::No) => Held::Kernel,";
    "unsafe-fua-taken-for-stable" "I9" MODES:
        "(Mode::Writeback, Fua::No) | (Mode::Unsafe, _) => Held::Kernel," =>
        "(Mode::Unsafe, Fua::Yes) => Held::Nowhere, (Mode::Writeback | Mode::Unsafe, Fua::No) => Held::Kernel,";
    "power-loss-taken-for-a-kill" "I9" EPOCH:
        "Held::Kernel if left.boot == boot => left," =>
        "Held::Kernel => left,";
    "epoch-changes-for-nothing" "I9" EPOCH:
        "Held::Nowhere => Record { boot, ..left }," =>
        "Held::Nowhere => anew,";
    "forgiven-data-is-left-lying" "E3" SYNCS:
        "state.poisoned.take().into_iter().for_each(Waker::wake);" =>
        "";
    "disc-leaves-data-in-the-cache" "C9" SESSION:
        "self.export.write_back().await;" =>
        "Ok::<(), io::Error>(());";
    "answer-forgotten" "I10" REPLIES:
        "self.failure(WireError::EIO, \"a bug in the server\", None);" =>
        "";
    "answer-to-the-wrong-request" "I10" REPLIES:
        "cookie: self.cookie }.encode()" =>
        "cookie: self.cookie ^ 1 }.encode()";
};
