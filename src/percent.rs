//! Percent-encoding, as in a URL query. Pure.

/// Decodes a text; `None` if the encoding is invalid or the result not UTF-8.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match first {
            b'%' => {
                let digits = std::str::from_utf8(after.get(..2)?).ok()?;
                let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                bytes.push(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex)?);
                rest = &after[2..];
            }
            b'+' => bytes.push(b' '),
            other => bytes.push(*other),
        }
    }
    String::from_utf8(bytes).ok()
}

/// The values of a key in a query. Invalid encodings are taken literally.
pub(crate) fn values(query: &str, key: &str) -> Vec<String> {
    let decoded = |text: &str| decode(text).unwrap_or_else(|| text.to_owned());
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(name, _)| decoded(name) == key).map(|(_, value)| decoded(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_valid_text_only() {
        assert_eq!(decode("a%5Bb%5d+%C3%a9").as_deref(), Some("a[b] é"));
        for broken in ["%", "%5", "%zz", "%+5", "%ff"] {
            assert_eq!(decode(broken), None, "{broken}");
        }
    }

    #[test]
    fn finds_all_values_of_a_key() {
        let of = |query| values(query, "name[]");
        assert_eq!(of("name[]=a&x=1&name%5B%5D=b%5fc&name%5b%5d=%"), ["a", "b_c", "%"]);
        assert!(of("").is_empty() && of("name[]").is_empty());
    }
}
