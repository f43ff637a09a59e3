//! The machine-readable listing.

use super::Listing;

/// Formats the listing as JSON, with the fields of [`Listing`].
pub fn json(listing: &Listing) -> String {
    // Only strings, numbers and lists, which cannot fail to serialize.
    serde_json::to_string_pretty(listing).unwrap_or_default() + "\n"
}
