package oa

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/tidwall/gjson"
	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/compliance/audit"
	"github.com/moothall/moothall/homeserver/mxerr"
	"github.com/moothall/moothall/homeserver/room"
	"github.com/moothall/moothall/homeserver/store"
)

// todoShown is how many open approvals the answer to “todo” holds.
const todoShown = 20

// follow looks at what is said in approvals rooms.
func (o *OA) follow(ctx context.Context, entries []store.Entry) error {
	var rooms, events []int64
	roomOf := map[int64]int64{}
	for _, e := range entries {
		if e.Kind == store.KindEvent {
			if _, seen := roomOf[e.Ref]; !seen {
				roomOf[e.Ref] = e.Room
				rooms, events = append(rooms, e.Room), append(events, e.Ref)
			}
		}
	}
	if len(rooms) == 0 {
		return nil
	}
	var owners map[int64]id.UserID
	err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
		owners, err = tx.OARoomUsers(rooms)
		return err
	})
	if err != nil || len(owners) == 0 {
		return err
	}
	var nids []int64
	for _, nid := range events {
		if owners[roomOf[nid]] != "" {
			nids = append(nids, nid)
		}
	}
	list, err := o.d.Rooms.EventsByNID(ctx, nids)
	if err != nil {
		return err
	}
	service, err := o.d.Service(ctx)
	if err != nil {
		return err
	}
	// cards are noted as they come by, not when their sender has got around to it: an answer may follow within a millisecond
	if err := o.noteShown(ctx, list, service, func(e *room.Event) id.UserID { return owners[roomOf[e.NID]] }); err != nil {
		return err
	}
	for _, e := range list {
		if e == nil || e.PDU.Sender() == service || e.RedactedBy != 0 {
			continue
		}
		if err := o.heard(ctx, e, service); err != nil {
			return err
		}
	}
	return nil
}

// noteShown notes the cards and reminders among events: to which approval answers to them belong, and which version of it people see
// from there on. Who made them notes the same afterwards.
func (o *OA) noteShown(ctx context.Context, list []*room.Event, service id.UserID, owner func(*room.Event) id.UserID) error {
	type card struct {
		store.OAShown
		open bool
	}
	var cards []card
	for _, e := range list {
		if e == nil || e.PDU.Sender() != service || e.PDU.Type() != "m.room.message" {
			continue
		}
		content := gjson.ParseBytes(e.PDU.Content())
		data := content.Get(cardKey)
		replaces := content.Get("m\\.relates_to.rel_type").Str == "m.replace"
		if replaces {
			data = content.Get("m\\.new_content." + cardKey)
		}
		m := taskName.FindStringSubmatch(data.Get("short_id").Str)
		if m == nil {
			continue
		}
		nid, err := strconv.ParseInt(m[1], 10, 64)
		if err != nil {
			continue
		}
		cards = append(cards, card{
			store.OAShown{Task: nid, Event: e.ID(), Room: e.PDU.RoomID(), User: owner(e), Version: data.Get("version").Int(), Ord: e.Ord, Replaces: replaces},
			data.Get("links").Exists(), // else nothing can be decided by it: a reminder, an outcome
		})
	}
	if len(cards) == 0 {
		return nil
	}
	return o.d.Store.Write(ctx, func(tx *store.Tx) error {
		for _, c := range cards {
			if err := tx.InsertOACard(c.Event, c.Task, c.User); err != nil {
				return err
			}
			if c.open {
				if err := tx.NoteOAShown(c.OAShown); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// heard answers one event. What fails for reasons of the person's is told to the person, all else is tried again.
func (o *OA) heard(ctx context.Context, e *room.Event, service id.UserID) error {
	var c command
	var ok bool
	switch e.PDU.Type() {
	case "m.reaction":
		c, ok = readReaction(e.PDU.Content())
	case "m.room.message":
		c, ok = readMessage(e.PDU.Content())
	}
	if !ok {
		return nil
	}
	sender := e.PDU.Sender()
	ctx = audit.WithSource(ctx, audit.Source{Actor: sender, Kind: audit.KindUser, Device: e.Device})
	var answer object
	var err error
	if c.verb == verbTodo {
		answer, err = o.todo(ctx, sender)
	} else {
		answer, err = o.obey(ctx, e, c)
	}
	if m := mxerr.As(err); m != nil && m.Status < 500 {
		answer, err = notice(m.Message), nil
	}
	if err != nil || answer == nil {
		return err
	}
	_, err = o.post(ctx, e.PDU.RoomID(), service, "answer/"+string(e.ID()), replyTo(answer, e.ID()))
	if m := mxerr.As(err); m != nil && m.Status < 500 {
		return nil // nobody is there to be told
	}
	return err
}

type verb int

const (
	verbApprove verb = iota + 1
	verbReject
	verbDelegate
	verbTodo
	verbUnknown
)

// command is what somebody said.
type command struct {
	verb verb
	card id.EventID // the message it is about; "" where a short id says it
	task int64
	text string // reason, or to whom
	via  string
}

func readReaction(content []byte) (command, bool) {
	rel := gjson.GetBytes(content, "m\\.relates_to")
	c := command{card: id.EventID(rel.Get("event_id").String()), via: viaReaction}
	if rel.Get("rel_type").String() != "m.annotation" || c.card == "" {
		return c, false
	}
	// emoji may carry a selector of their look, and thumbs a colour
	switch key := rel.Get("key").String(); {
	case strings.HasPrefix(key, "✅"), strings.HasPrefix(key, "✔"):
		c.verb = verbApprove
	case strings.HasPrefix(key, "❌"), strings.HasPrefix(key, "✖"):
		c.verb = verbReject
	default:
		return c, false
	}
	return c, true
}

var (
	verbs = []struct {
		words []string
		verb  verb
	}{
		{[]string{"同意", "批准", "approved", "approve"}, verbApprove},
		{[]string{"驳回", "拒绝", "rejected", "reject"}, verbReject},
		{[]string{"转交", "delegate"}, verbDelegate},
		{[]string{"待办", "todo"}, verbTodo},
	}
	taskName = regexp.MustCompile(`(?i)^#?A([0-9]{1,15})\b`)
	spaces   = " \t\r\n,，:：.。;；!！、"
)

// readMessage reads a reply to a card, or a command that names a task by its short id.
func readMessage(content []byte) (command, bool) {
	c := command{via: viaReply}
	rel := gjson.GetBytes(content, "m\\.relates_to")
	if rel.Get("rel_type").String() == "m.replace" {
		return c, false // an edit of what was said decides nothing
	}
	body := gjson.GetBytes(content, "body").String()
	c.card = id.EventID(rel.Get("m\\.in_reply_to.event_id").String())
	if c.card != "" {
		body = withoutFallback(body)
	}
	body = strings.Trim(body, spaces)
	lower := strings.ToLower(body)
	for _, v := range verbs {
		for _, word := range v.words {
			rest, ok := strings.CutPrefix(lower, word)
			if !ok {
				continue
			}
			rest = body[len(body)-len(rest):]
			if word[0] < 0x80 && rest != "" && !strings.ContainsAny(rest[:1], spaces) && rest[0] < 0x80 {
				continue // approvement, rejection
			}
			c.verb, c.text = v.verb, strings.Trim(rest, spaces)
			break
		}
		if c.verb != 0 {
			break
		}
	}
	if c.verb == verbTodo {
		return c, c.text == ""
	}
	if m := taskName.FindStringSubmatch(c.text); m != nil && c.verb != 0 {
		c.task, _ = strconv.ParseInt(m[1], 10, 64)
		c.text, c.card = strings.Trim(c.text[len(m[0]):], spaces), ""
	}
	if c.verb == 0 && c.card != "" {
		c.verb = verbUnknown
	}
	return c, c.verb != 0 && (c.card != "" || c.task != 0)
}

// withoutFallback takes off the quotation that older clients put before a reply.
func withoutFallback(body string) string {
	if !strings.HasPrefix(body, "> ") {
		return body
	}
	lines := strings.Split(body, "\n")
	for len(lines) > 0 && strings.HasPrefix(lines[0], ">") {
		lines = lines[1:]
	}
	return strings.Join(lines, "\n")
}

// obey does what a reaction or reply says; the answer is nil where the card shows the outcome.
func (o *OA) obey(ctx context.Context, e *room.Event, c command) (object, error) {
	sender := e.PDU.Sender()
	nid := c.task
	if c.card != "" {
		found := false
		err := o.d.Store.ReadOne(ctx, func(tx *store.Tx) (err error) {
			nid, _, found, err = tx.OACard(c.card)
			return err
		})
		if err != nil || !found {
			return nil, err // a reply to something else
		}
	}
	t, _, err := o.findBy(ctx, func(tx *store.Tx) (store.OATask, bool, error) { return tx.OATask(nid) })
	if mxerr.Is(err, "M_NOT_FOUND") {
		return notice(o.words.gone), nil
	}
	if err != nil {
		return nil, err
	}
	switch {
	case t.Ref == string(e.ID()):
		return nil, nil // the follower comes by a second time
	case t.Assignee != sender && t.CardUser != sender:
		a := audit.Entry{Action: "oa.refused", Target: shortID(nid), Reason: "somebody else's approval", Details: map[string]any{"via": c.via, "event": e.ID()}}
		return notice(o.words.foreign), o.d.Audit.Refusal(ctx, a)
	case t.Status != store.OAOpen:
		return notice(fmt.Sprintf(o.words.closed, shortID(nid), o.words.status(t.Status))), nil
	case t.Assignee != sender || t.ShownVersion != t.Version || e.Ord < t.ShownOrd:
		return notice(o.words.changed), nil // what the person saw is not what would be decided
	case c.verb == verbUnknown:
		return notice(o.words.unknown), nil
	case c.verb == verbDelegate:
		to, err := o.user(ctx, "to", strings.Trim(c.text, spaces))
		if err != nil {
			return nil, err
		}
		if t, err = o.delegate(ctx, nid, t.Version, sender, to, c.via); err != nil {
			return nil, err
		}
		return notice(fmt.Sprintf(o.words.delegated, shortID(nid), o.displayName(ctx, t.Assignee))), nil
	case !t.LowRisk:
		link, err := o.link(ctx, &t.OATask)
		if err != nil {
			return nil, err
		}
		return notice(fmt.Sprintf(o.words.onPage, link)), nil
	case c.verb == verbReject && c.text == "" && o.template(t).RequireReason:
		return notice(o.words.needReason), nil
	}
	if len(c.text) > maxReason {
		return nil, bad("reason", "has more than %d bytes", maxReason)
	}
	d := decision{task: nid, version: t.Version, by: sender, status: store.OAApproved, reason: c.text, via: c.via, ref: string(e.ID())}
	if c.verb == verbReject {
		d.status = store.OARejected
	}
	_, err = o.decide(ctx, d)
	if m := mxerr.As(err); m != nil && m.Extra["status"] != nil {
		return notice(fmt.Sprintf(o.words.closed, shortID(nid), o.words.status(fmt.Sprint(m.Extra["status"])))), nil
	}
	return nil, err
}

// todo lists what a person has to decide, with new links.
func (o *OA) todo(ctx context.Context, user id.UserID) (object, error) {
	var rows []store.OATask
	var count int64
	err := o.d.Store.Read(ctx, func(tx *store.Tx) (err error) {
		if count, err = tx.CountOAOpen(user); err == nil {
			rows, err = tx.OAOpenOf(user, todoShown)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if count == 0 {
		return notice(o.words.nothing), nil
	}
	m := &text{}
	m.head(fmt.Sprintf(o.words.todo, count))
	for _, row := range rows {
		t, err := readTask(row)
		if err != nil {
			return nil, err
		}
		link, err := o.link(ctx, &row)
		if err != nil {
			return nil, err
		}
		line := shortID(row.NID) + " " + t.brief.Title
		if t.brief.Applicant != "" {
			line += " · " + t.brief.Applicant
		}
		if t.brief.Amount != nil {
			line += " · " + t.brief.Amount.String()
		}
		m.links([]Link{{line, link}})
	}
	if rest := count - int64(len(rows)); rest > 0 {
		m.line(fmt.Sprintf(o.words.more, rest))
	}
	return m.content("m.notice"), nil
}
