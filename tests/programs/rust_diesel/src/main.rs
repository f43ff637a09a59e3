//! Runs several kinds of queries, valid and invalid ones, and prints how many of each kind diesel reported.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use diesel::connection::{CacheSize, InstrumentationEvent};
use diesel::prelude::*;

diesel::table! {
    users (id) {
        id -> Integer,
        name -> Text,
    }
}

const USERS: i32 = 200;

fn main() {
    let mut db = SqliteConnection::establish(":memory:").unwrap();
    diesel::sql_query("create table users (id integer primary key, name text not null)").execute(&mut db).unwrap();
    // Without the cache, the text of each query is built, parsed by SQLite and dropped.
    db.set_prepared_statement_cache_size(CacheSize::Disabled);
    let counts = Arc::new(Mutex::new(BTreeMap::<String, u64>::new()));
    let book = counts.clone();
    db.set_instrumentation(move |event: InstrumentationEvent<'_>| {
        if let InstrumentationEvent::StartQuery { query, .. } = event {
            let verb = query.to_string().split([' ', '\n']).next().unwrap().to_lowercase();
            *book.lock().unwrap().entry(verb).or_default() += 1;
        }
    });
    for id in 0..USERS {
        let user = (users::id.eq(id), users::name.eq(format!("user number {id}")));
        diesel::insert_into(users::table).values(user).execute(&mut db).unwrap();
        // A duplicate key, which must fail.
        if id % 4 == 0 {
            diesel::insert_into(users::table)
                .values((users::id.eq(id), users::name.eq("")))
                .execute(&mut db)
                .unwrap_err();
        }
        let name: String = users::table.find(id).select(users::name).first(&mut db).unwrap();
        assert_eq!(name, format!("user number {id}"));
        if id % 2 == 0 {
            let changed =
                diesel::update(users::table.find(id)).set(users::name.eq("nobody")).execute(&mut db).unwrap();
            assert_eq!(changed, 1);
        }
        if id % 5 == 0 {
            diesel::delete(users::table.find(id)).execute(&mut db).unwrap();
        }
        if id % 10 == 0 {
            let text = format!("pragma no_such_pragma_{id}");
            diesel::sql_query(text).execute(&mut db).unwrap();
            // No such table: the statement cannot even be prepared.
            diesel::sql_query(format!("select * from table_{id}")).execute(&mut db).unwrap_err();
        }
    }
    let left: i64 = users::table.count().get_result(&mut db).unwrap();
    assert_eq!(left, i64::from(USERS - USERS / 5));
    for (verb, count) in counts.lock().unwrap().iter() {
        println!("{verb} {count}");
    }
}
