//! stub
use crate::plan::Plan;
/// stub
pub fn dashboard(_plan: &Plan) -> String {
    String::new()
}
/// stub
pub fn alerts(_plan: &Plan) -> String {
    String::new()
}
