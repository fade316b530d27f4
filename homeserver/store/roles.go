package store

import "maunium.net/go/mautrix/id"

// Roles lists what roles a user was given, without that of the server's administrators, in their order.
func (tx *Tx) Roles(user id.UserID) ([]string, error) {
	var out []string
	err := tx.Each(`SELECT role FROM user_roles WHERE usr = $1 ORDER BY role`, []any{user}, func(r *Row) error {
		var role string
		if err := r.Scan(&role); err != nil {
			return err
		}
		out = append(out, role)
		return nil
	})
	return out, err
}

// SetRole gives a user a role or takes it away; false means that nothing changed.
func (tx *Tx) SetRole(user id.UserID, role string, on bool, now int64) (bool, error) {
	if !on {
		n, err := tx.Exec(`DELETE FROM user_roles WHERE usr = $1 AND role = $2`, user, role)
		return n > 0, err
	}
	n, err := tx.Exec(`INSERT INTO user_roles (usr, role, since) VALUES ($1, $2, $3) ON CONFLICT (usr, role) DO NOTHING`, user, role, now)
	return n > 0, err
}

// DeleteRoles takes all roles away from a user.
func (tx *Tx) DeleteRoles(user id.UserID) error {
	_, err := tx.Exec(`DELETE FROM user_roles WHERE usr = $1`, user)
	return err
}

// UsersWithRole lists who has a role, deactivated accounts left out. role "admin" is that of the server's administrators.
func (tx *Tx) UsersWithRole(role string) ([]id.UserID, error) {
	sql := `SELECT r.usr FROM user_roles r JOIN users u ON u.user_id = r.usr WHERE r.role = $1 AND u.deactivated = 0 ORDER BY r.usr`
	args := []any{role}
	if role == "admin" {
		sql, args = `SELECT user_id FROM users WHERE admin = 1 AND deactivated = 0 ORDER BY user_id`, nil
	}
	var out []id.UserID
	err := tx.Each(sql, args, func(r *Row) error {
		var u id.UserID
		if err := r.Scan(&u); err != nil {
			return err
		}
		out = append(out, u)
		return nil
	})
	return out, err
}
