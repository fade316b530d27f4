package hr

import (
	"context"
	"fmt"
	"html"
	"net/url"
	"strings"

	"github.com/go-json-experiment/json"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/store"
)

const (
	dueChunk = 50
	laterMS  = 60_000 // until what failed is tried again
)

// due does what is due for persons: their first day begins, their last day is over, a change was interrupted, a welcome
// is to be sent.
func (h *HR) due(ctx context.Context) error {
	for {
		var rows []store.SCIMUser
		err := h.d.Store.ReadOne(ctx, func(tx *store.Tx) error {
			var err error
			rows, err = tx.DueSCIMUsers(h.now(), dueChunk)
			return err
		})
		if err != nil || len(rows) == 0 {
			return err
		}
		for _, row := range rows {
			if err := h.dueFor(ctx, row); err != nil {
				if ctx.Err() != nil {
					return nil
				}
				h.d.Logger.Warn("what was due for a person failed and is tried again", "user_id", row.User, "error", err)
				err := h.d.Store.Write(ctx, func(tx *store.Tx) error { return tx.LaterSCIMUser(row.ID, row.Version, h.now()+laterMS) })
				if err != nil {
					return err
				}
			}
		}
	}
}

func (h *HR) dueFor(ctx context.Context, row store.SCIMUser) error {
	var o object
	if err := json.Unmarshal(row.Doc, &o); err != nil {
		return err
	}
	greeted := row.Greet != 1
	if row.Deleted {
		return h.gone(ctx, row)
	}
	if err := h.apply(ctx, row, o); err != nil {
		return err
	}
	reason, next := barred(&row, h.now())
	if greeted || reason != "" {
		return nil
	}
	// rooms that the first day opened are to be in the message
	if err := h.d.Groups.Recheck(ctx, row.User); err != nil {
		return err
	}
	if _, err := h.d.Groups.Settle(ctx); err != nil {
		return err
	}
	if err := h.welcome(ctx, row, o); err != nil {
		return err
	}
	return h.d.Store.Write(ctx, func(tx *store.Tx) error {
		if err := tx.GreetedSCIMUser(row.ID); err != nil {
			return err
		}
		return tx.LaterSCIMUser(row.ID, row.Version, next)
	})
}

// words are what people are told, in their language.
type words struct{ welcome, rooms, joins, as, in string }

func wordsFor(language string) words {
	if strings.HasPrefix(strings.ToLower(language), "zh") {
		return words{welcome: "欢迎加入，%s！", rooms: "你的房间：", joins: "%s 今天加入你的团队。", as: "职位：%s", in: "部门：%s"}
	}
	return words{welcome: "Welcome, %s!", rooms: "Your rooms:", joins: "%s joins your team today.", as: "Job title: %s", in: "Department: %s"}
}

// welcome greets a newcomer with their rooms, and tells their manager.
func (h *HR) welcome(ctx context.Context, row store.SCIMUser, o object) error {
	var rooms []store.GroupRoom
	managerID := text(o, enterpriseURN, "manager", "value")
	var manager store.SCIMUser
	err := h.d.Store.Read(ctx, func(tx *store.Tx) error {
		var err error
		if rooms, err = tx.GroupRoomsOf(row.User); err != nil || managerID == "" {
			return err
		}
		manager, _, err = tx.SCIMUser(managerID)
		return err
	})
	if err != nil {
		return err
	}
	w := wordsFor(text(o, "preferredLanguage"))
	plain := []string{fmt.Sprintf(w.welcome, displayName(o))}
	rich := []string{html.EscapeString(plain[0])}
	if len(rooms) > 0 {
		plain, rich = append(plain, w.rooms), append(rich, html.EscapeString(w.rooms))
		var items strings.Builder
		for _, r := range rooms {
			plain = append(plain, "• "+r.Name)
			fmt.Fprintf(&items, `<li><a href="%s">%s</a></li>`, html.EscapeString(h.permalink(string(r.RoomID))), html.EscapeString(r.Name))
		}
		rich = append(rich, "<ul>"+items.String()+"</ul>")
	}
	if err := h.write(ctx, row.User, "welcome/"+row.ID, message(plain, rich)); err != nil {
		return err
	}
	if manager.User == "" || manager.Deleted {
		return nil
	}
	var boss object
	if err := json.Unmarshal(manager.Doc, &boss); err != nil {
		return err
	}
	w = wordsFor(text(boss, "preferredLanguage"))
	name := displayName(o)
	plain = []string{fmt.Sprintf(w.joins, name+" ("+string(row.User)+")")}
	rich = []string{fmt.Sprintf(html.EscapeString(w.joins), fmt.Sprintf(`<a href="%s">%s</a>`,
		html.EscapeString(h.permalink(string(row.User))), html.EscapeString(name)))}
	for _, more := range []struct{ format, value string }{{w.as, text(o, "title")}, {w.in, text(o, enterpriseURN, "department")}} {
		if more.value != "" {
			line := fmt.Sprintf(more.format, more.value)
			plain, rich = append(plain, line), append(rich, html.EscapeString(line))
		}
	}
	err = h.write(ctx, manager.User, "joins/"+row.ID, message(plain, rich))
	if e := mxerr.As(err); e != nil {
		h.d.Logger.Warn("a manager was not told of a newcomer", "user_id", manager.User, "error", err)
		return nil
	}
	return err
}

func (h *HR) permalink(target string) string {
	link := "https://matrix.to/#/" + url.PathEscape(target)
	if strings.HasPrefix(target, "!") {
		link += "?via=" + url.QueryEscape(h.d.ServerName)
	}
	return link
}

// message is the content of a message from lines.
func message(plain, rich []string) []byte {
	b, err := json.Marshal(object{
		"msgtype": "m.text", "body": strings.Join(plain, "\n"), "m.mentions": object{},
		"format": "org.matrix.custom.html", "formatted_body": strings.ReplaceAll(strings.Join(rich, "<br>"), "<br><ul>", "<ul>"),
	}, json.Deterministic(true))
	if err != nil {
		return []byte(`{}`) // text always marshals
	}
	return b
}

// write sends a message to a person, once for each key.
func (h *HR) write(ctx context.Context, user id.UserID, key string, content []byte) error {
	roomID, err := h.serviceRoom(ctx, user)
	if err != nil {
		return err
	}
	_, err = h.post(ctx, roomID, key, content)
	return err
}
