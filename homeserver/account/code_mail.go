package account

import (
	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/store"
)

// MailCode is the kind of a mail with a one-time code for signing in.
const MailCode = "sign_in_code"

// CodeMail is a mail with a one-time code, to be put into the outbox (store.InsertMail) in the transaction that makes the code.
func CodeMail(to, lang, code string, now int64) (store.Mail, error) {
	data, err := json.Marshal(MailData{Code: code})
	return store.Mail{ID: randomLetters(32), To: to, Kind: MailCode, Lang: lang, Data: data, Created: now}, err
}
