//! Just enough of a Rust lexer to tell code from comments and strings, and one path from another.

/// The part of a file that is shipped: what stands before its tests, which come last.
#[must_use]
pub fn product(text: &str) -> &str {
    text.split_once("#[cfg(test)]\nmod ").map_or(text, |(product, _)| product)
}

/// Identifiers, `::` and other punctuation; comments, strings and characters are left out.
#[must_use]
pub fn tokens(text: &str) -> Vec<String> {
    lex(text).into_iter().map(|(token, _)| token).collect()
}

/// Every path that is used, with groups taken apart: `use a::{b, c::d};` gives `a::b` and
/// `a::c::d`. Single identifiers are paths too.
#[must_use]
pub fn paths(text: &str) -> Vec<String> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = if is_word(&tokens[at]) { path(&tokens, at, "", &mut found) } else { at + 1 };
    }
    found
}

/// Every function that has a body, with its lines from `fn` to the closing brace.
#[must_use]
pub fn functions(text: &str) -> Vec<(String, usize)> {
    let tokens = lex(text);
    let mut found = Vec::new();
    for (at, pair) in tokens.windows(2).enumerate() {
        if pair[0].0 != "fn" || !is_word(&pair[1].0) {
            continue;
        }
        let mut depth = 0;
        for (token, line) in &tokens[at..] {
            match token.as_str() {
                "{" | "(" | "[" => depth += 1,
                "}" | ")" | "]" => depth -= 1,
                ";" if depth == 0 => break,
                _ => continue,
            }
            if token == "}" && depth == 0 {
                found.push((pair[1].0.clone(), line - pair[0].1 + 1));
                break;
            }
        }
    }
    found
}

/// Reads one path, or one branch of a group, and returns where it ends.
fn path(tokens: &[String], mut at: usize, prefix: &str, found: &mut Vec<String>) -> usize {
    let mut so_far = prefix.to_owned();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some(word) if is_word(word) => {
                so_far.push_str(if so_far.is_empty() { "" } else { "::" });
                so_far.push_str(word);
                at += 1;
            }
            Some("{") => {
                at += 1;
                while let Some(token) = tokens.get(at).filter(|token| *token != "}") {
                    let is_start = is_word(token) || token == "{";
                    at = if is_start { path(tokens, at, &so_far, found) } else { at + 1 };
                }
                return at + 1;
            }
            _ => break,
        }
        if tokens.get(at).is_none_or(|token| token != "::") {
            break;
        }
        at += 1;
    }
    found.push(so_far);
    at
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// Tokens with their lines.
fn lex(text: &str) -> Vec<(String, usize)> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let (len, is_code) = measure(rest, first);
        let (token, after) = rest.split_at(len);
        if is_code {
            tokens.push((token.to_owned(), line));
        }
        line += token.matches('\n').count();
        rest = after;
    }
    tokens
}

/// How long the piece at the front is, and whether it is code.
fn measure(rest: &str, first: char) -> (usize, bool) {
    let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let until =
        |end: &str, from: usize| rest[from..].find(end).map_or(rest.len(), |found| from + found + end.len());
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), false);
    }
    if rest.starts_with("/*") {
        return (until("*/", 2), false);
    }
    if rest.starts_with("::") {
        return (2, true);
    }
    let raw = rest.trim_start_matches('b').strip_prefix('r').unwrap_or_default();
    let hashes = raw.len() - raw.trim_start_matches('#').len();
    if raw[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let opening = rest.len() - raw.len() + hashes + 1;
        return (until(&end, opening), false);
    }
    match first {
        '"' => (quoted(rest, '"'), false),
        '\'' if is_character(rest) => (quoted(rest, '\''), false),
        '\'' => (1 + word(&rest[1..]), false),
        c if c.is_alphanumeric() || c == '_' => (word(rest), true),
        c => (c.len_utf8(), !c.is_whitespace()),
    }
}

/// Whether a quote opens a character rather than a lifetime.
fn is_character(rest: &str) -> bool {
    let mut chars = rest.chars().skip(1);
    match chars.next() {
        Some('\\') => true,
        Some(_) => chars.next() == Some('\''),
        None => false,
    }
}

/// The length of something in quotes, with backslashes.
fn quoted(rest: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return at + c.len_utf8(),
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_strings_and_characters_are_no_code() {
        let text = "a /* b */ \"c \\\" d\" 'e' '\\'' b\"f\" r#\"g \" h\"# <'i> // j\n k";
        assert_eq!(tokens(text).concat().replace(['<', '>'], ""), "abk");
        assert_eq!(tokens("x::y(1)"), ["x", "::", "y", "(", "1", ")"]);
    }

    #[test]
    fn groups_are_taken_apart() {
        let found = paths("use a::{b, c::{d, e as f}, self}; g::h();");
        for path in ["a::b", "a::c::d", "a::c::e", "a::self", "g::h"] {
            assert!(found.iter().any(|it| it == path), "{path} in {found:?}");
        }
    }

    #[test]
    fn functions_are_measured_from_fn_to_brace() {
        let text =
            "trait T { fn none(&self); }\nfn one() {}\nfn three<T>(x: [u8; 2])\n{ match x { _ => {} }\n}\n";
        assert_eq!(functions(text), [("one".to_owned(), 1), ("three".to_owned(), 3)]);
    }

    #[test]
    fn tests_are_not_shipped() {
        assert_eq!(product("a\n#[cfg(test)]\nmod tests {\n b }"), "a\n");
    }
}
