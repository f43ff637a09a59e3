//! The listing for programs.

use super::Listing;

/// The listing as JSON, in the fields of [`Listing`].
pub fn json(listing: &Listing) -> String {
    // Strings, numbers and lists only: nothing of it can fail.
    serde_json::to_string_pretty(listing).unwrap_or_default() + "\n"
}
