//! Formatting of large numbers.

/// Inserts thousands separators: 1234567 becomes 1,234,567.
pub fn group_thousands(digits: &str) -> String {
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_thousands() {
        assert_eq!(["0", "999", "1000", "1234567"].map(group_thousands), ["0", "999", "1,000", "1,234,567"]);
    }
}
