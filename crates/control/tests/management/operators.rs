//! Operators' accounts: nobody makes himself one that may do more than he may.

use loomworks_control::access::{self, Caller, Operator, Permission, Scope};
use loomworks_control::operators::{self, NewOperator};
use loomworks_control::{Error, World};
use loomworks_core::ids::OperatorId;

use super::world::{Installation, caller, operator};

fn who_may(permissions: &[Permission]) -> Operator {
    let caller = Caller { permissions: permissions.to_vec(), ..caller(Scope::Operator) };
    access::operator(&caller, Permission::Manage).expect("an operator")
}

async fn make(world: &World, by: &Operator, permissions: &[Permission]) -> Result<OperatorId, Error> {
    let email = format!("{}@example.com", OperatorId::random());
    let new = NewOperator {
        name: "Ann".into(),
        email: email.parse().expect("an address"),
        password: None,
        permissions: permissions.to_vec(),
    };
    operators::create(world, by, new).await.map(|made| made.id)
}

#[tokio::test]
async fn nobody_gets_into_an_account_that_may_do_more_than_he() {
    use Permission::{Manage, Read, Work};
    let world = Installation::new().process().await;
    let (all, manager) = (operator(), who_may(&[Manage]));
    for more in [&[Read][..], &[Work, Manage], &Permission::ALL] {
        let refused = make(&world, &manager, more).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    let (weak, strong) = (
        make(&world, &manager, &[Manage]).await.expect("no more than he has"),
        make(&world, &all, &Permission::ALL).await.expect("make"),
    );
    let password = || "correct horse battery".into();
    let refused = operators::set_password(&world, &manager, strong, password()).await;
    assert!(matches!(refused, Err(Error::Forbidden)), "{refused:?}");
    operators::set_password(&world, &manager, weak, password()).await.expect("as strong as he");
    // Locking an account gives nobody anything; opening it lets somebody else in.
    operators::set_disabled(&world, &manager, strong, true).await.expect("lock");
    let refused = operators::set_disabled(&world, &manager, strong, false).await;
    assert!(matches!(refused, Err(Error::Forbidden)), "{refused:?}");
    let opened = operators::set_disabled(&world, &all, strong, false).await.expect("open");
    assert!(opened.disabled_at.is_none() && !opened.has_password);
}
