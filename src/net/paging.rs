//! `page=1&per_page=100` in a query string.

/// The requested page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Paging {
    /// Counts from 1.
    pub page: u32,
    pub per_page: u32,
    most: u32,
}

impl Paging {
    /// The first page; pages have at most `most` rows.
    pub fn new(per_page: u32, most: u32) -> Self {
        Self { page: 1, per_page, most }
    }

    /// Parses a parameter; returns whether it is one of these two.
    ///
    /// # Errors
    /// What was expected.
    pub fn take(&mut self, key: &str, value: &str) -> Result<bool, String> {
        let (number, most) = match key {
            "page" => (&mut self.page, u32::MAX),
            "per_page" => (&mut self.per_page, self.most),
            _ => return Ok(false),
        };
        let read = value.parse().ok().filter(|value| (1..=most).contains(value));
        *number = read.ok_or_else(|| match key {
            "page" => format!("{key}: expected a number from 1"),
            _ => format!("{key}: expected a number from 1 to {most}"),
        })?;
        Ok(true)
    }

    /// Rows before the page.
    pub fn skipped(&self) -> usize {
        (self.page as usize - 1).saturating_mul(self.per_page as usize)
    }
}
