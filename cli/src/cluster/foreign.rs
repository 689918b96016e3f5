//! What others have written, on its way to a screen. Apart, as each command shows some of it.

/// The same, without what a terminal would act on or be misled by.
pub(crate) fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c != '\n' && (c.is_control() || is_direction(c)) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// Characters that turn the direction of what stands beside them, or are not seen.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn nothing_reaches_the_terminal_that_it_acts_on() {
        for (text, shown) in [
            ("qwen3:0.6b\nä", "qwen3:0.6b\nä"),
            ("a\u{1b}[2Jb", "a\\u{1b}[2Jb"),
            ("\r\u{9b}31m", "\\r\\u{9b}31m"),
            ("gpu\u{202e}1", "gpu\\u{202e}1"),
        ] {
            assert_eq!(printable(text), shown);
        }
    }
}
