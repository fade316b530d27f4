package account

import (
	"strings"

	"github.com/go-json-experiment/json"

	"github.com/moothall/moothall/homeserver/store"
)

// MailUnread is the kind of a mail that tells of unread messages; its token stops such mails.
const MailUnread = "unread"

// UnreadMail is a mail with lines that say what is unread, to be put into the outbox.
func UnreadMail(mailID, to, lang string, lines []string, token string, now int64) (store.Mail, error) {
	short := "en"
	if strings.HasPrefix(strings.ToLower(lang), "zh") {
		short = "zh"
	}
	data, err := json.Marshal(MailData{Facts: lines, Token: token})
	return store.Mail{ID: mailID, To: to, Kind: MailUnread, Lang: short, Data: data, Created: now}, err
}
