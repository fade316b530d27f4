package store

// DueEmailPushers lists pushers of the kind email that may be written to now and for which something waits since a time.
func (tx *Tx) DueEmailPushers(now, since int64, limit int) ([]Pusher, error) {
	return tx.pushers(`kind = 'email' AND next_try <= $1 AND EXISTS (SELECT 1 FROM push_queue q WHERE q.pusher = pushers.id AND q.queued <= $2)
		ORDER BY next_try LIMIT $3`, now, since, limit)
}

// EmailPusher reads a pusher of the kind email by its number.
func (tx *Tx) EmailPusher(pusher int64) (Pusher, bool, error) {
	list, err := tx.pushers(`kind = 'email' AND id = $1`, pusher)
	if err != nil || len(list) == 0 {
		return Pusher{}, false, err
	}
	return list[0], true, nil
}

// WaitingPushes reads the oldest notifications of a pusher, at most limit.
func (tx *Tx) WaitingPushes(pusher int64, limit int) (out []Push, err error) {
	err = tx.waiting([]int64{pusher}, limit, func(q Push) { out = append(out, q) })
	return out, err
}

// EmailDone takes away what was mailed or need not be, and notes how many mails came since something was read and when the
// next one may come.
func (tx *Tx) EmailDone(pusher, upTo, mails, next int64) error {
	if _, err := tx.Exec(`DELETE FROM push_queue WHERE pusher = $1 AND pos <= $2`, pusher, upTo); err != nil {
		return err
	}
	_, err := tx.Exec(`UPDATE pushers SET failures = $2, next_try = $3 WHERE id = $1`, pusher, mails, next)
	return err
}
