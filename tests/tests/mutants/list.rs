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
const ENGINE: &str = "durability.rs";
const ORDERING: &str = "durability/ordering.rs";
const COMMIT: &str = "durability/group_commit.rs";
const EARLY: &str = "durability/early_ack.rs";
const CACHE: &str = "durability/write_cache.rs";
const GATE: &str = "durability/mode_gate.rs";
const MARKER: &str = "durability/dirty_marker.rs";
const EPOCH: &str = "durability/epoch.rs";

/// Every planted fault.
pub(crate) const MUTANTS: &[Mutant] = &mutants! {
    "half-received-write-runs" "C1" RECEIVE:
        "if *filled < data.len() {" =>
        "if *filled == 0 {";
    "half-received-long-write-runs" "C1" RECEIVE:
        "return Poll::Ready(if received == 0 { Err(cut_short()) } else { Ok(()) });" =>
        "if received == 0 { *filled = data.len(); } return Poll::Ready(Ok(()));";
    "overlap-order-ignored" "C2 C4" ORDERING:
        "queue.entries[..mine].iter().any(|earlier| earlier.overlaps(&queue.entries[mine]))" =>
        "mine > 1_000_000";
    "some-places-in-line-wrong" "C2" ORDERING:
        "queue.next_number += 1;" =>
        "queue.next_number += 1; let range = if number % 2 == 0 { range.end..range.end + 1 } else { range };";
    "new-connections-do-not-wait-for-what-ended-ones-left" "C4" ORDERING:
        "let fence = (queue.orphans > 0).then_some(queue.next_number);" =>
        "let fence = None;";
    "what-ended-connections-left-is-forgotten" "C4" ORDERING:
        "queue.orphans += left;" =>
        "let _ = left;";
    "reads-do-not-wait-for-what-ended-connections-left" "C4" ENGINE:
        "if self.mode() != Mode::EarlyAck && !receipt.must_wait() {\n            return self.storage.read(at, buf);" =>
        "if self.mode() != Mode::EarlyAck {\n            return self.storage.read(at, buf);";
    "read-misses-the-cache" "C3" ENGINE:
        "overlay.apply(at, &mut buf);" =>
        "";
    "read-looks-at-the-cache-late" "C3" ENGINE:
        "overlay.apply(at, &mut buf);" =>
        "self.early.overlay(&(at..at + buf.len() as u64)).apply(at, &mut buf);";
    "sync-covers-what-came-after-it-began" "C5" COMMIT:
        "Some(Ok(())) => state.durable = state.durable.max(self.covers)," =>
        "Some(Ok(())) => state.durable = state.written,";
    "flush-answered-by-any-sync" "C5" COMMIT:
        "if self.durable.requests >= written {" =>
        "if self.durable.requests > 0 {";
    "flush-ignored" "C5" ENGINE:
        "return self.commit.reach(receipt.target, AtOnce::One, &*self.storage).await;" =>
        "return self.commit.check();";
    "first-flush-trusts-the-last-server" "C5" COMMIT:
        "written: Written { requests: 1, bytes: 0 }," =>
        "written: Written { requests: 0, bytes: 0 },";
    "writes-not-covered-by-flush" "C5" ENGINE:
        "let target = self.commit.wrote(bytes);\n        stored?;" =>
        "let target = if promise == Promise::Stable { self.commit.wrote(bytes) } else { Target::default() };\n        stored?;";
    "early-writes-not-covered-by-flush" "C5" ENGINE:
        "let target = receipt.target.including(self.commit.target());" =>
        "let target = receipt.target;";
    "fua-ignored" "C6" ENGINE:
        "(Mode::Writethrough, _) | (Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Promise::Stable," =>
        "(Mode::Writethrough, _) => Promise::Stable, (Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Promise::Written,";
    "fua-ignored-on-zeroes" "C6" ENGINE:
        "let done = self.store(&pass, promise, at..at + len, || self.storage.zero(at, len, how)).await;" =>
        "let done = self.store(&pass, if promise == Promise::Stable { Promise::Written } else { promise }, at..at + len, || self.storage.zero(at, len, how)).await;";
    "fua-ignored-on-trim" "C6" ENGINE:
        "let done = self.store(&pass, promise, at..at + len, || self.storage.trim(at, len)).await;" =>
        "let done = self.store(&pass, if promise == Promise::Stable { Promise::Written } else { promise }, at..at + len, || self.storage.trim(at, len)).await;";
    "writethrough-writes-back" "mode 1" ENGINE:
        "(Mode::Writethrough, _) | (Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Promise::Stable," =>
        "(Mode::Writethrough, Fua::No) => Promise::Written, (Mode::Writethrough | Mode::Writeback | Mode::EarlyAck, Fua::Yes) => Promise::Stable,";
    "failed-durable-write-taken-for-a-sync" "C5 C6" ENGINE:
        "Err(error) if !is_sync_failure(error) => lead.cancel()," =>
        "Err(error) if !is_sync_failure(error) => lead.finish(Ok(())),";
    "failed-sync-of-a-durable-write-forgotten" "E1" ENGINE:
        "Err(error) if !is_sync_failure(error) => lead.cancel()," =>
        "Err(_) => lead.cancel(),";
    "durable-write-begins-despite-a-loss" "C11 E1" ENGINE:
        "done?;\n        self.commit.check_since(begun)" =>
        "let _ = begun;\n        done";
    "failed-sync-forgotten" "E1" COMMIT:
        "Some(Err(error)) => self.commit.set_poison(&mut state, error)," =>
        "Some(Err(_)) => {}";
    "two-syncs-of-one-description-at-a-time" "C11" COMMIT:
        "let result = storage.flush(lead.sync).await;" =>
        "let result = storage.flush(0).await;";
    "a-sync-that-runs-covers-everything" "C5" COMMIT:
        "self.running.iter().flatten().any(|covers| covers.requests >= written)" =>
        "self.running.iter().flatten().next().is_some()";
    "old-errors-are-told-after-the-poison-is-cleared" "E1" ENGINE:
        "self.commit.tell_old_errors(&*self.storage).await;" =>
        "";
    "a-loss-while-a-write-was-under-way-ignored" "C11" ENGINE:
        "self.commit.check_since(begun)?;" =>
        "let _ = begun;";
    "a-loss-before-the-poison-was-cleared-ignored" "C11 E1" COMMIT:
        "if now != target.generation || now.is_poisoned() {" =>
        "if now.is_poisoned() {";
    "a-batch-that-a-sync-lost-is-dropped" "C11 E3" EARLY:
        "match result.and_then(|()| commit.check_since(begun)) {" =>
        "let _ = begun;\n            match result {";
    "a-clearing-that-waited-clears-the-next-loss" "E1" ENGINE:
        "if losses != seen {" =>
        "if false && losses != seen {";
    "lost-write-back-forgotten" "E1" EARLY:
        "commit.poison(&error);" =>
        "let _ = error;";
    "lost-write-back-dropped" "E3" EARLY:
        "self.lock().restore();" =>
        "drop(self.lock().complete());";
    "flush-forgets-what-is-in-flight" "early C5" CACHE:
        "|| self.in_flight.values().any(|run| run.oldest <= number)" =>
        "";
    "flush-forgets-what-was-replaced" "early C5" CACHE:
        "let oldest = self.cut(&range).unwrap_or(self.last);" =>
        "self.cut(&range); let oldest = self.last;";
    "flush-does-not-drain" "early C5" ENGINE:
        "self.early.drain_all(&self.commit).await?;\n        let target = receipt" =>
        "let target = receipt";
    "what-bypasses-the-cache-does-not-drain" "early C2" ENGINE:
        "Mode::EarlyAck => self.early.drain(range, &self.commit).await," =>
        "Mode::EarlyAck => { let _ = range; self.commit.check() }";
    "reads-see-what-is-in-flight-over-what-is-newer" "early C2" CACHE:
        "older.chain(newer)" =>
        "newer.chain(older)";
    "memory-without-bound" "I7" EARLY:
        "if cache.memory_bytes() + needed > self.limits.dirty_max" =>
        "if cache.memory_bytes() + needed > usize::MAX - 1";
    "some-of-a-batch-forgotten" "early C5" EARLY:
        "storage.write_many(batch).await;" =>
        "storage.write_many(batch.into_iter().take(1).collect()).await;";
    "dirty-data-never-ages" "I7" EARLY:
        "self.lock().expedite(*armed);" =>
        "let _ = *armed;";
    "stop-does-not-sync" "I8" ENGINE:
        "self.sync_all().await?;" =>
        "";
    "stop-forgets-what-unsafe-wrote" "I8" ENGINE:
        "let target = self.commit.wrote(bytes);\n        stored?;" =>
        "let target = if pass.mode() == Mode::Unsafe { Target::default() } else { self.commit.wrote(bytes) };\n        stored?;";
    "change-of-mode-does-not-sync" "change" ENGINE:
        "self.sync_all().await.map_err(unstable)?;\n        if let Err" =>
        "if let Err";
    "change-of-mode-does-not-wait" "change" GATE:
        "if self.is_empty() {" =>
        "if self.lock().inside < 1_000 {";
    "change-of-mode-lets-requests-pass" "change" GATE:
        "if state.closed {" =>
        "if false {";
    "change-of-mode-despite-a-loss" "change E1" ENGINE:
        "let synced = self.drain_and_sync().await;" =>
        "let synced = self.drain_and_sync().await.or_else(|_| Ok(()));";
    "loss-keeps-its-epoch" "I9" MARKER:
        "state.record.epoch = self.store.fresh_epoch();" =>
        "";
    "loss-is-not-put-on-record" "I9" MARKER:
        "self.epoch(losses);\n" =>
        "self.epoch(losses);\n        if losses > 0 { return Ok(()); }\n";
    "poison-is-not-put-on-record" "E1" MARKER:
        "state.record.poison = Some(cause);" =>
        "drop(cause);";
    "acknowledged-before-it-is-on-record" "I9" MARKER:
        "&& self.durable.as_ref().is_some_and(says)" =>
        "";
    "record-that-is-being-stored-ignored" "I9" MARKER:
        "&& self.storing.as_ref().is_none_or(says)" =>
        "";
    "record-that-cannot-be-stored-ignored" "I9" ENGINE:
        "(pass, if is_marked { promise } else { Promise::Stable })" =>
        "let _ = is_marked; (pass, promise)";
    "failed-sync-of-the-record-ignored" "C11" ENGINE:
        "if is_sync_failure(error) {" =>
        "if false && is_sync_failure(error) {";
    "record-is-never-tried-again" "I9" MARKER:
        "self.persist(Attempt::Again).await\n    }\n\n    /// Resolves when a marker" =>
        "self.persist(Attempt::First).await\n    }\n\n    /// Resolves when a marker";
    "unmarks-while-data-is-unstable" "I9" ENGINE:
        "let is_true = || self.gate.is_empty() && self.early.is_empty() && self.commit.is_synced();" =>
        "let is_true = || self.gate.is_empty();";
    "unmarks-while-requests-are-under-way" "I9" ENGINE:
        "let is_true = || self.gate.is_empty() && self.early.is_empty() && self.commit.is_synced();" =>
        "let is_true = || self.early.is_empty() && self.commit.is_synced();";
    "early-ack-taken-for-the-hosts" "I9" ENGINE:
        "Promise::Received => Unstable::ServerMemory," =>
        "Promise::Received => Unstable::HostCache,";
    "unsafe-fua-taken-for-stable" "I9" ENGINE:
        "if self.marker.is_marked(promise.unstable()) {" =>
        "if fua == Fua::Yes || self.marker.is_marked(promise.unstable()) {";
    "power-loss-taken-for-a-kill" "I9" EPOCH:
        "Unstable::HostCache if !found.same_boot => Verdict::Renew(Reason::HostDied)," =>
        "";
    "remount-taken-for-a-kill" "I9" EPOCH:
        "Unstable::HostCache if !found.same_instance => Verdict::Renew(Reason::Remounted)," =>
        "";
    "kill-taken-for-harmless" "I9" EPOCH:
        "Unstable::HostCache => Verdict::KeepIfSynced," =>
        "Unstable::HostCache => Verdict::Keep,";
    "server-memory-taken-for-the-hosts" "I9" EPOCH:
        "Unstable::ServerMemory => Verdict::Renew(Reason::ServerDied)," =>
        "Unstable::ServerMemory => Verdict::KeepIfSynced,";
    "epoch-changes-for-nothing" "I9" EPOCH:
        "return if found.unchanged { Verdict::Keep } else { Verdict::Renew(Reason::Changed) };" =>
        "return Verdict::Renew(Reason::Changed);";
    "data-of-a-cleared-poison-is-left-lying" "E3" EARLY:
        "commit.healthy().await;" =>
        "if commit.check().is_err() { std::future::pending::<()>().await; }";
    "disc-leaves-data-in-the-cache" "C9" SESSION:
        "self.around.export.write_back().await;" =>
        "Ok::<(), io::Error>(());";
    "answer-forgotten" "I10" REPLIES:
        "self.failure(WireError::EIO, \"a bug in the server\", None);" =>
        "";
    "answer-to-the-wrong-request" "I10" REPLIES:
        "cookie: self.cookie }.encode()" =>
        "cookie: self.cookie ^ 1 }.encode()";
};
