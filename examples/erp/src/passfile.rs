//! The password file: one line a database, in the form that PostgreSQL's own programs read.
//!
//! ```text
//! host:port:database:user:password
//! ```
//!
//! A colon or a backslash within a field is written with a backslash before it. Lines that begin with `#` are
//! comments. Host and port may be `*`. A database must be named: an app for many tenants has no use for a
//! password that fits any of them.

/// What one line says about a database.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `None` where the line says `*`.
    pub(crate) host: Option<String>,
    pub(crate) port: Option<u16>,
    pub(crate) user: String,
    pub(crate) password: String,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry")
            .field("host", &self.host)
            .field("port", &self.port)
            .field("user", &self.user)
            .finish()
    }
}

/// The first line about this database, as PostgreSQL's programs take the first that fits.
pub(crate) fn find(text: &str, database: &str) -> Option<Entry> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let [host, port, name, user, password] = fields(line)?;
        let port = if port == "*" { None } else { Some(port.parse().ok()?) };
        let host = Some(host).filter(|host| host != "*");
        (name == database && name != "*").then_some(Entry { host, port, user, password })
    })
}

/// The five fields of a line without their backslashes. `None` for any other number of fields.
fn fields(line: &str) -> Option<[String; 5]> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match c {
            ':' => fields.push(String::new()),
            '\\' => fields.last_mut()?.extend(characters.next()),
            _ => fields.last_mut()?.push(c),
        }
    }
    fields.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
# host:port:database:user:password
127.0.0.1:5433:acme:acme_app:secret
*:*:globex:globex_app:p\\:a\\\\ss word
*:*:globex:later:never
db.example:5432:odd\\:name:u:x
*:*:*:anyone:anything
too:few:fields
*:no port:initech:u:x
";

    #[test]
    fn a_line_says_where_and_as_whom() {
        let entry = find(FILE, "acme").unwrap();
        assert_eq!((entry.host.as_deref(), entry.port), (Some("127.0.0.1"), Some(5433)));
        assert_eq!((entry.user.as_str(), entry.password.as_str()), ("acme_app", "secret"));
    }

    #[test]
    fn the_first_line_counts_and_its_backslashes_do_not() {
        let entry = find(FILE, "globex").unwrap();
        assert_eq!((entry.host, entry.port), (None, None));
        assert_eq!(entry.password, r"p:a\ss word");
        assert_eq!(find(FILE, "odd:name").unwrap().user, "u");
    }

    #[test]
    fn a_database_without_a_line_of_its_own_has_none() {
        for database in ["umbrella", "", "*", "fields", "initech", "ACME"] {
            assert_eq!(find(FILE, database), None, "{database:?}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        assert!(!format!("{:?}", find(FILE, "acme")).contains("secret"));
    }
}
