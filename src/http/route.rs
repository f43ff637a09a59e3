//! The table of routes, and which of them a request is for.

use std::borrow::Cow;
use std::fmt::Write;
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::{Method, StatusCode};

use super::PLAIN_TEXT;
use super::visitors::Visitors;

/// Produces a route's answer. It runs on a thread that may block, several at once; a panic in it gives the
/// client a 500 and nobody else anything.
pub type Handler = Arc<dyn Fn(&RequestInfo) -> Reply + Send + Sync>;

/// Who may ask for a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone who can connect.
    Open,
    /// Who presents the credentials, where any are configured.
    Credentials,
    /// Who presents the credentials; where none are configured, who asks from this machine. No page of a browser.
    Operator,
}

/// One row of the table: all there is to say about a path.
pub struct Route {
    /// The whole path, beginning with a slash. There are no patterns.
    pub path: &'static str,
    /// A few words for where routes are listed; parts of a page, which have none, are left out there.
    pub about: &'static str,
    pub access: Access,
    /// The method that is served; with GET goes HEAD.
    pub method: Method,
    /// Content type of the handler's answers.
    pub content_type: &'static str,
    /// Where it is noted who asks.
    pub visitors: Option<Arc<Visitors>>,
    pub handler: Handler,
}

/// What a handler may know of a request.
#[derive(Debug, Clone)]
pub struct RequestInfo {
    /// What follows the question mark, undecoded.
    pub query: Option<String>,
    /// What it would like to get (the headers `Accept`).
    pub accept: Option<String>,
}

/// A handler's answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub body: Bytes,
    /// Instead of the route's.
    pub content_type: Option<Cow<'static, str>>,
}

impl Reply {
    /// 200 with a body.
    pub fn ok(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, body)
    }

    pub fn new(status: StatusCode, body: impl Into<Bytes>) -> Self {
        Self { status, body: body.into(), content_type: None }
    }

    /// The same with a content type of its own.
    pub fn typed(self, content_type: Cow<'static, str>) -> Self {
        Self { content_type: Some(content_type), ..self }
    }
}

/// The routes of one listener. `/` is served too, as a page that lists them, unless the table has it.
pub struct Router {
    routes: Vec<Route>,
    index: String,
}

/// What the table says about a request.
pub(super) enum RouteMatch<'a> {
    Route(&'a Route),
    /// The list of routes.
    Index(&'a str),
    /// The path is known, the method is not served; the route's path is given, and what is served.
    WrongMethod(&'static str, &'static str),
    Nothing,
}

impl Router {
    /// Makes a table; `title` heads the page that lists its routes.
    pub fn new(title: &str, routes: Vec<Route>) -> Self {
        let mut index = format!("{title}\n\n");
        for route in routes.iter().filter(|route| !route.about.is_empty()) {
            let _ = writeln!(index, "{}  {}", route.path, route.about);
        }
        Self { routes, index }
    }

    pub(super) fn find(&self, method: &Method, path: &str) -> RouteMatch<'_> {
        let route = self.routes.iter().find(|route| route.path == path);
        let known = route.map(|route| (route.path, &route.method));
        let Some((path, served)) = known.or((path == "/").then_some(("/", &Method::GET))) else {
            return RouteMatch::Nothing;
        };
        let is_served = method == served || (served == Method::GET && method == Method::HEAD);
        match route {
            _ if !is_served => {
                RouteMatch::WrongMethod(path, if served == Method::GET { "GET, HEAD" } else { "POST" })
            }
            Some(route) => RouteMatch::Route(route),
            None => RouteMatch::Index(&self.index),
        }
    }

    /// The body of a 404: what could have been asked for. The path that was asked for is not repeated.
    pub(super) fn not_found(&self) -> String {
        let told = self.routes.iter().filter(|route| !route.about.is_empty());
        let paths: Vec<&str> = told.map(|route| route.path).collect();
        format!("not found; available: {}\n", paths.join(" "))
    }
}

impl Route {
    /// The content type of an answer: its own or the route's, or plain text for an error it reports.
    pub(super) fn content_type_of(&self, reply: &Reply) -> Cow<'static, str> {
        match &reply.content_type {
            _ if !reply.status.is_success() => PLAIN_TEXT.into(),
            Some(own) => own.clone(),
            None => self.content_type.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(paths: &[&'static str]) -> Router {
        let route = |&path| Route {
            path,
            about: "about it",
            access: Access::Open,
            method: Method::GET,
            content_type: "application/json",
            visitors: None,
            handler: Arc::new(|_: &RequestInfo| Reply::ok("{}")),
        };
        Router::new("title", paths.iter().map(route).collect())
    }

    #[test]
    fn every_row_is_found_by_its_exact_path() {
        let router = router(&["/metrics", "/api/v1/flows"]);
        for route in &router.routes {
            assert!(
                matches!(router.find(&Method::GET, route.path), RouteMatch::Route(found) if found.path == route.path)
            );
            assert!(matches!(router.find(&Method::HEAD, route.path), RouteMatch::Route(_)));
            assert!(
                matches!(router.find(&Method::POST, route.path), RouteMatch::WrongMethod(path, "GET, HEAD") if path == route.path)
            );
        }
        for path in ["", "*", "/metrics/", "/Metrics", "/metrics2", "/api", "//metrics"] {
            assert!(matches!(router.find(&Method::GET, path), RouteMatch::Nothing), "{path}");
            assert!(matches!(router.find(&Method::POST, path), RouteMatch::Nothing), "{path}");
        }
        assert_eq!(router.not_found(), "not found; available: /metrics /api/v1/flows\n");
    }

    #[test]
    fn the_index_lists_the_table_unless_the_table_has_it() {
        let table = router(&["/health"]);
        let RouteMatch::Index(text) = table.find(&Method::GET, "/") else { panic!("no index") };
        assert_eq!(text, "title\n\n/health  about it\n");
        assert!(matches!(table.find(&Method::PUT, "/"), RouteMatch::WrongMethod("/", _)));
        assert!(matches!(router(&["/"]).find(&Method::GET, "/"), RouteMatch::Route(_)));
    }

    #[test]
    fn parts_of_a_page_are_not_listed() {
        let mut routes = router(&["/metrics", "/page.css"]).routes;
        routes[1].about = "";
        let table = Router::new("title", routes);
        assert_eq!(table.not_found(), "not found; available: /metrics\n");
        assert_eq!(table.index, "title\n\n/metrics  about it\n");
        assert!(matches!(table.find(&Method::GET, "/page.css"), RouteMatch::Route(_)));
    }

    #[test]
    fn a_route_that_changes_something_takes_post_only() {
        let mut table = router(&["/-/reload"]);
        table.routes[0].method = Method::POST;
        assert!(matches!(table.find(&Method::POST, "/-/reload"), RouteMatch::Route(_)));
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            assert!(matches!(table.find(&method, "/-/reload"), RouteMatch::WrongMethod("/-/reload", "POST")));
        }
    }

    #[test]
    fn an_error_is_plain_text_whatever_the_route_serves() {
        let table = router(&["/a"]);
        let route = &table.routes[0];
        assert_eq!(route.content_type_of(&Reply::ok("{}")), "application/json");
        let error = Reply::new(StatusCode::SERVICE_UNAVAILABLE, "not ready\n");
        assert_eq!(route.content_type_of(&error), PLAIN_TEXT);
    }
}
