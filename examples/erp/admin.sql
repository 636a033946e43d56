-- The first user of a new tenant. May run twice: the second time it sets the same password again.
--
-- A sample has no better function at hand than SHA-256; an app of yours uses its own, slow one.
INSERT INTO public.app_users AS u (login, password_salt, password_hash, is_admin)
SELECT current_setting('loomworks.admin_login'), salt,
       sha256(convert_to(salt || current_setting('loomworks.admin_password'), 'UTF8')), true
FROM (SELECT gen_random_uuid()::text AS salt) AS drawn
ON CONFLICT (login) DO UPDATE
SET password_salt = excluded.password_salt, password_hash = excluded.password_hash, is_admin = true, active = true;
