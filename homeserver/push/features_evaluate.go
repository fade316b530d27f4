package push

import "slices"

// FeatureView is what EvaluateFeatures looks at. The room comes with the RoomContext.
type FeatureView struct {
	Features
	Sender string
	Type   string // may be left empty; it decides more for users with own rules on types
}

type answer uint8

const (
	no answer = iota
	yes
	unknown
)

func is(b bool) answer {
	if b {
		return yes
	}
	return no
}

// EvaluateFeatures is Evaluate on the features alone. decided is false if the event has to be read. It does not allocate.
func (c *Compiled) EvaluateFeatures(f *FeatureView, ctx *RoomContext) (a Actions, decided bool) {
	if f.Sender == ctx.UserID {
		return Actions{}, true
	}
	class := f.Class()
	if class >= numClasses {
		return Actions{}, false // stored by a newer version of the server
	}
	rules := c.byClass[class]
next:
	for i := range rules {
		r := &rules[i]
		sure := true
		for j := range r.conds {
			switch r.conds[j].onFeatures(f, ctx) {
			case no:
				continue next
			case unknown:
				sure = false
			}
		}
		if !sure {
			return Actions{}, false
		}
		return Actions{Notify: r.notify, Highlight: r.notify && r.highlight, rule: r.rule}, true
	}
	return Actions{}, true
}

// needsBody tells whether features leave the condition open for ordinary messages.
func (c *condition) needsBody() bool {
	switch c.op {
	case opMemberCount, opMayNotify, opRoom, opSender, opMentionsUser, opStateKeyIsUser, opThread:
		return false
	case opDisplayName, opWords:
		return true
	case opContains:
		return c.field != fieldMentions || c.value.kind != '"'
	case opIs:
		return !c.isFlag()
	}
	switch c.top {
	case topType, topSender, topRoomID:
		return false
	case topStateKey:
		return !c.glob.isLit || c.glob.literal != ""
	case topContent:
		return !(c.glob.isLit && (c.field == fieldMsgtype && c.glob.literal == "m.notice" ||
			c.field == fieldMembership && c.glob.literal == "invite"))
	}
	return true
}

// isFlag tells whether a condition event_property_is is answered by a flag.
func (c *condition) isFlag() bool {
	return c.field == fieldRelType && c.value.kind == '"' && c.value.text == "m.replace" ||
		c.field == fieldRoomMention && c.value.kind == 't'
}

// onFeatures is onEvent as far as features can tell.
func (c *condition) onFeatures(f *FeatureView, ctx *RoomContext) answer {
	switch c.op {
	case opMatch:
		return c.matchFeatures(f, ctx)
	case opIs:
		return c.isFeatures(f, ctx)
	case opWords:
		if f.Flags&FlagBody == 0 {
			return no
		}
		return unknown
	case opDisplayName:
		if f.Flags&FlagBody == 0 || ctx.DisplayName == "" {
			return no
		}
		return unknown
	case opContains:
		if c.top != topContent {
			return no
		}
		if c.field != fieldMentions || c.value.kind != '"' {
			return unknown
		}
		return f.isMentioned(c.value.text)
	case opMentionsUser:
		return f.isMentioned(ctx.UserID)
	case opStateKeyIsUser:
		if f.Flags&FlagState == 0 || f.Flags&FlagEmptyKey != 0 {
			return no
		}
		return unknown
	case opRoom:
		return is(ctx.RoomID == c.text)
	case opSender:
		return is(f.Sender == c.text)
	}
	return is(c.onRoom(ctx))
}

func (f *FeatureView) isMentioned(userID string) answer {
	if slices.Contains(f.Mentions, userID) {
		return yes
	}
	if f.Flags&FlagMore != 0 {
		return unknown
	}
	return no
}

func (f *FeatureView) typeName() string {
	if f.Type == "" {
		return f.Class().typeName()
	}
	return f.Type
}

func (c *condition) matchFeatures(f *FeatureView, ctx *RoomContext) answer {
	switch c.top {
	case topType:
		if t := f.typeName(); t != "" {
			return is(c.glob.Match(t))
		}
	case topSender:
		return is(c.glob.Match(f.Sender))
	case topRoomID:
		return is(c.glob.Match(ctx.RoomID))
	case topStateKey:
		if f.Flags&FlagState == 0 {
			return no
		}
		if f.Flags&FlagEmptyKey != 0 {
			return is(c.glob.Match(""))
		}
		if c.glob.isLit && c.glob.literal == "" {
			return no
		}
	case topTS:
		return no // a number is no string
	case topContent:
		switch c.field {
		case fieldMsgtype:
			return c.flagged(f.Flags&FlagNotice != 0, "m.notice")
		case fieldMembership:
			return c.flagged(f.Flags&FlagInvite != 0, "invite")
		case fieldRelType:
			if f.Flags&FlagEdit != 0 {
				return is(c.glob.Match("m.replace"))
			}
		}
	}
	return unknown
}

// flagged answers for a property of which a flag tells whether it has the value (without regard to case).
func (c *condition) flagged(set bool, value string) answer {
	if set {
		return is(c.glob.Match(value))
	}
	if c.glob.isLit && c.glob.literal == value {
		return no
	}
	return unknown
}

func (c *condition) isFeatures(f *FeatureView, ctx *RoomContext) answer {
	str := c.value.kind == '"'
	switch c.top {
	case topType:
		// The class forgets the case, event_property_is does not.
		if f.Type != "" {
			return is(str && f.Type == c.value.text)
		}
	case topSender:
		return is(str && f.Sender == c.value.text)
	case topRoomID:
		return is(str && ctx.RoomID == c.value.text)
	case topStateKey:
		switch {
		case f.Flags&FlagState == 0 || !str:
			return no
		case f.Flags&FlagEmptyKey != 0:
			return is(c.value.text == "")
		case c.value.text == "":
			return no
		}
	case topContent:
		switch {
		case c.field == fieldRelType && str && c.value.text == "m.replace":
			return is(f.Flags&FlagEdit != 0)
		case c.field == fieldRoomMention && c.value.kind == 't':
			return is(f.Flags&FlagRoomMention != 0)
		}
	}
	return unknown
}
