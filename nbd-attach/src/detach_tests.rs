//! Proves that objections name what to do, and who may overrule them.

use super::*;

fn in_use() -> DetachError {
    let uses = vec![Use::Mount("/mnt".into()), Use::Holder("dm-0".into())];
    DetachError::InUse { device: Index::new(0).unwrap(), uses }
}

#[test]
fn objections_name_the_users_and_the_way_out() {
    let text = in_use().to_string();
    assert_eq!(
        text,
        "/dev/nbd0 is in use: mounted on /mnt, held by /dev/dm-0; --force detaches it all the same"
    );
    let foreign = DetachError::Foreign { device: Index::new(0).unwrap(), backend: None };
    assert!(foreign.to_string().contains("another tool (it left no identifier)"));
}

#[test]
fn only_insisting_overrules_an_objection() {
    assert!(object(Insistence::Refuse, in_use()).is_err());
    assert!(object(Insistence::Force, in_use()).is_ok());
}
