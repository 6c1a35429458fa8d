//! The table of conformance says what is true: every sentence of the spec has a row, in its order, and the
//! places and tests that rows name are there.

use std::fs;
use std::path::Path;

use tests::tidy::tokens;

const TABLE: &str = include_str!("../../common/src/manual/conformance.md");
/// Sentences with a MUST or a SHOULD in the spec, and in the extension, at the commits the table names.
const SENTENCES: usize = 311;
const OF_THE_EXTENSION: usize = 59;

struct Row<'t> {
    number: &'t str,
    who: &'t str,
    what: &'t str,
    place: &'t str,
    test: &'t str,
}

fn rows(table: &str) -> Vec<Row<'_>> {
    table.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<Row<'_>> {
    let inside = line.strip_prefix("| ")?.strip_suffix('|')?;
    let cells: Vec<&str> = inside.split('|').map(str::trim).collect();
    match cells[..] {
        [number, who, what, place, test] if number.ends_with(|c: char| c.is_ascii_digit()) => {
            Some(Row { number, who, what, place, test })
        }
        _ => None,
    }
}

/// "`file` `item`", and the text of the file.
fn resolve(cell: &str) -> Result<(String, String), String> {
    let mut words = cell.split('`').filter(|word| !word.trim().is_empty());
    let (Some(file), Some(item), None) = (words.next(), words.next(), words.next()) else {
        return Err(format!("{cell:?} is no file and item"));
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a member of a workspace");
    let text = fs::read_to_string(root.join(file)).map_err(|error| format!("{file}: {error}"))?;
    Ok((item.to_owned(), text))
}

/// Whether a text defines an item.
fn defines(text: &str, item: &str) -> bool {
    let kinds = ["fn", "struct", "enum", "const", "trait"];
    tokens(text).windows(2).any(|pair| kinds.contains(&pair[0].as_str()) && pair[1] == item)
}

/// Whether a text has a test of that name.
fn tests(text: &str, name: &str) -> bool {
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    lines.windows(2).any(|pair| pair[0].ends_with("test]") && pair[1].contains(&head))
}

/// What is wrong with a row.
fn fault(row: &Row<'_>) -> Option<String> {
    let about = |what: String| Some(format!("row {}: {what}", row.number));
    if row.what.is_empty() {
        return about("it says nothing".into());
    }
    match row.who {
        "server" | "client" | "both" => {}
        "nobody" | "the kernel" | "**departs**" if row.place.is_empty() && row.test.is_empty() => {
            return None;
        }
        who => return about(format!("{who:?} with {:?} and {:?}", row.place, row.test)),
    }
    match (resolve(row.place), resolve(row.test)) {
        (Err(error), _) | (_, Err(error)) => about(error),
        (Ok((item, text)), _) if !defines(&text, &item) => about(format!("there is no {item}")),
        (_, Ok((name, text))) if !tests(&text, &name) => about(format!("there is no test {name}")),
        _ => None,
    }
}

#[test]
fn every_sentence_has_a_row_and_every_row_is_true() {
    let rows = rows(TABLE);
    let numbers: Vec<&str> = rows.iter().map(|row| row.number).collect();
    let wanted =
        (1..=SENTENCES).map(|n| n.to_string()).chain((1..=OF_THE_EXTENSION).map(|n| format!("E{n}")));
    assert_eq!(numbers, wanted.collect::<Vec<_>>());
    let faults: Vec<String> = rows.iter().filter_map(fault).collect();
    assert!(faults.is_empty(), "{faults:#?}");
}

#[test]
fn a_row_that_is_not_true_is_found() {
    let fine = "`tests/tests/manual.rs` `rows` | `tests/tests/manual.rs` `a_row_that_is_not_true_is_found`";
    let line = |who: &str, places: &str| format!("| 7 | {who} | something | {places} |");
    let found = |line: String| fault(&rows(&line)[0]);
    assert_eq!(found(line("server", fine)), None);
    assert_eq!(found(line("the kernel", "|")), None);
    for (who, places) in [
        ("server", "|"),
        ("nobody", fine),
        ("somebody", fine),
        ("server", &fine.replace("`rows`", "`no_such_item`")),
        ("server", &fine.replace("a_row_that", "no_row_that")),
        ("server", &fine.replace("manual.rs` `a", "no_such_file.rs` `a")),
        // A function that is no test shows nothing.
        ("server", &fine.replace("a_row_that_is_not_true_is_found", "resolve")),
    ] {
        assert!(found(line(who, places)).is_some(), "{who} {places}");
    }
}
