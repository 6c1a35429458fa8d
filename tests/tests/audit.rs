//! Proves that our server, in every mode, has done before it replies what the mode promises: every
//! check of the audit that the mode owes is seen to hold. And that the checks can fail: each that
//! is about stable storage does so on the mode that promises none.

use tests::audit::checks::CHECKS;
use tests::audit::subject::{Family, SUBJECTS};
use tests::audit::{Subject, Theme, Verdict};
use tests::tool;

/// How often a check is made that saw too little to judge.
const ATTEMPTS_MAX: u32 = 4;

/// What a mode owes is seen, and it offers everything.
fn keeps_its_promises(mode: &str) {
    if tool::find("strace", "strace").is_none() {
        return;
    }
    let subject = Subject::named(mode).expect("the mode is a subject");
    let mut broken = Vec::new();
    for check in CHECKS {
        // Whether a FLUSH meets a running sync is up to the scheduler: who has seen too little looks again.
        let mut verdicts = (0..ATTEMPTS_MAX).map(|_| check.judge(subject));
        let seen = verdicts.find(|verdict| !matches!(verdict, Verdict::Unseen(_)));
        match seen.unwrap_or_else(|| check.judge(subject)) {
            Verdict::Holds => {}
            Verdict::NotPromised(_) if !check.is_owed_by(subject) => {}
            verdict => broken.push(format!("{} {}: {verdict:?}", check.rule, check.name)),
        }
    }
    assert_eq!(broken, Vec::<String>::new(), "{mode}");
}

#[test]
fn writethrough_keeps_its_promises() {
    keeps_its_promises("writethrough");
}

#[test]
fn writeback_keeps_its_promises() {
    keeps_its_promises("writeback");
}

#[test]
fn early_ack_keeps_its_promises() {
    keeps_its_promises("early-ack");
}

#[test]
fn unsafe_keeps_its_promises() {
    keeps_its_promises("unsafe");
}

/// Every check of a theme, but for those of what is advertised, fails on a mode.
fn is_caught(mode: &str, theme: Theme) {
    if tool::find("strace", "strace").is_none() {
        return;
    }
    let subject = Subject::named(mode).expect("the mode is a subject");
    let checks = CHECKS.iter().filter(|check| check.theme == theme && !check.name.contains("advertised"));
    for check in checks {
        let verdict = check.examine(subject);
        assert!(matches!(verdict, Verdict::Fails(_)), "{mode} passes \"{}\": {verdict:?}", check.name);
    }
}

#[test]
fn a_server_that_makes_nothing_stable_fails() {
    is_caught("unsafe", Theme::Stability);
}

#[test]
fn a_server_that_forgets_failed_syncs_fails() {
    is_caught("unsafe", Theme::Failure);
}

#[test]
fn a_server_that_answers_before_it_writes_fails() {
    is_caught("early-ack", Theme::OwnError);
}

#[test]
fn only_what_is_promised_is_owed() {
    let ours = || SUBJECTS.iter().filter(|subject| subject.family == Family::Ours);
    assert_eq!(ours().count(), 4, "one for each mode");
    let owed = |name: &str| {
        let subject = Subject::named(name).expect("a subject");
        CHECKS.iter().filter(|check| check.is_owed_by(subject)).count()
    };
    // Only writethrough owes everything; a mode that forgoes a theme owes that much less.
    assert_eq!(owed("writethrough"), CHECKS.len());
    assert_eq!(owed("writeback"), CHECKS.len() - 1);
    let about = |theme| CHECKS.iter().filter(|check| check.theme == theme).count();
    assert_eq!(owed("early-ack"), CHECKS.len() - 1 - about(Theme::OwnError));
    assert_eq!(owed("unsafe"), CHECKS.len() - about(Theme::Stability) - about(Theme::Failure));
}
