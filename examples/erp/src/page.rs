//! The one page for people.

use std::fmt::Write as _;

use crate::api::{Counts, Order};

const STYLE: &str = "body{font:1rem/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}\
    dl{display:flex;gap:2rem;flex-wrap:wrap}dt{color:#666}dd{margin:0;font-size:1.5rem}\
    table{border-collapse:collapse;width:100%}td,th{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #ddd}\
    td:last-child,th:last-child{text-align:right}";

pub(crate) fn home(tenant: &str, counts: &Counts, orders: &[Order]) -> String {
    let tenant = escape(tenant);
    let counts = [
        ("Companies", counts.companies),
        ("Contacts", counts.contacts),
        ("Products", counts.products),
        ("Orders", counts.orders),
        ("Order lines", counts.order_lines),
        ("Invoices", counts.invoices),
        ("Activities", counts.activities),
    ];
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{tenant}</title>\n\
         <style>{STYLE}</style></head><body><h1>{tenant}</h1>\n<dl>"
    );
    for (name, count) in counts {
        let _ = write!(page, "<div><dt>{name}</dt><dd>{count}</dd></div>");
    }
    page += "</dl>\n<h2>Last orders</h2>\n<table><tr><th>Order</th><th>When</th><th>Contact</th><th>Company</th>\
             <th>Status</th><th>Total</th></tr>\n";
    for order in orders {
        let Order { id, contact, company, status, ordered_at, total } = order;
        let (contact, company) = (escape(contact), escape(company));
        let _ = writeln!(
            page,
            "<tr><td>{id}</td><td>{ordered_at}</td><td>{contact}</td><td>{company}</td><td>{status}</td><td>{total}</td></tr>"
        );
    }
    page + "</table></body></html>\n"
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_and_never_markup() {
        let counts = Counts {
            companies: 1,
            contacts: 2,
            products: 3,
            orders: 4,
            order_lines: 5,
            invoices: 6,
            activities: 7,
        };
        let page = home("<script>alert('&')</script>", &counts, &[]);
        assert!(!page.contains("<script>"));
        assert!(page.contains("&lt;script&gt;alert(&#39;&amp;&#39;)"));
    }
}
