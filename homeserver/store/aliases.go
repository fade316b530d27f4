package store

// AliasByName finds a room alias; ok is false when there is none.
func (tx *Tx) AliasByName(alias string) (a Alias, ok bool, err error) {
	a.Alias = alias
	ok, err = tx.Get([]any{&a.Room, &a.Creator, &a.Created}, `SELECT room, creator, created FROM room_aliases WHERE alias = $1`, alias)
	return a, ok, err
}

// RoomAliases lists the aliases of a room, the oldest first.
func (tx *Tx) RoomAliases(room int64) ([]string, error) {
	var out []string
	err := tx.Each(`SELECT alias FROM room_aliases WHERE room = $1 ORDER BY created, alias`, []any{room}, func(r *Row) error {
		var a string
		err := r.Scan(&a)
		out = append(out, a)
		return err
	})
	return out, err
}

// DeleteAlias drops an alias and tells whether it was there.
func (tx *Tx) DeleteAlias(alias string) (bool, error) {
	n, err := tx.Exec(`DELETE FROM room_aliases WHERE alias = $1`, alias)
	return n > 0, err
}

// MoveAliases points all aliases of one room to another.
func (tx *Tx) MoveAliases(from, to int64) error {
	_, err := tx.Exec(`UPDATE room_aliases SET room = $2 WHERE room = $1`, from, to)
	return err
}
