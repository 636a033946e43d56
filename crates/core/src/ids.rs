//! One type for each kind of id, so that a job cannot be asked for by a tenant's id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id.
            #[must_use]
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }

            /// The first twelve hexadecimal digits: short enough to live in the name of a role, a database or a
            /// directory, long enough (48 bits) that a unique index never has to refuse one in practice.
            #[must_use]
            pub fn short(&self) -> String {
                self.0.simple().to_string()[..12].to_owned()
            }
        }

        impl From<Uuid> for $name {
            fn from(id: Uuid) -> Self {
                Self(id)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

id!(
    /// A tenant.
    TenantId
);
id!(
    /// A job of the queue.
    JobId
);
id!(
    /// A snapshot of one tenant.
    SnapshotId
);
id!(
    /// An AI session, the time during which one agent may work in one tenant's database.
    SessionId
);
id!(
    /// An API key.
    ApiKeyId
);
id!(
    /// An operator's account.
    OperatorId
);
id!(
    /// The time during which an operator is logged in with one browser.
    LoginId
);
id!(
    /// A migration of many tenants' databases.
    FleetMigrationId
);
id!(
    /// A webhook: an address to which notifications are sent.
    WebhookId
);
id!(
    /// One notification on its way to one webhook.
    DeliveryId
);
id!(
    /// An archive with everything about a tenant.
    ExportId
);
