package event

import (
	"crypto/ed25519"

	"maunium.net/go/mautrix/id"
)

// checkMember is the auth rule for m.room.member. Spec: room version 12 auth rule 5, and what earlier versions lack of it.
func (c *candidate) checkMember() error {
	membership, ok := str(get(c.content, "membership"))
	if !c.isState || !ok {
		return c.forbidden("m.room.member must have a state key and a membership")
	}
	switch membership {
	case join:
		return c.checkJoin()
	case invite:
		return c.checkInvite()
	case leave:
		return c.checkLeave()
	case ban:
		return c.checkBan()
	case knock:
		if c.v.Knock {
			return c.checkKnock()
		}
	}
	return c.forbidden("the membership %q is not known in room version %s", printable(membership), c.v.ID)
}

// joinRule is the current join rule; a room that never set one is for the invited.
func (c *candidate) joinRule() string {
	if rules := c.state.Get(typeJoinRules, ""); rules != nil {
		if rule, ok := str(get(rules.content, "join_rule")); ok {
			return rule
		}
	}
	return invite
}

// needsRestricted tells whether the join rule lets in whom a member's server vouches for.
func (c *candidate) needsRestricted(rule string) bool {
	return rule == "restricted" && c.v.Restricted || rule == "knock_restricted" && c.v.KnockRestricted
}

func (c *candidate) checkJoin() error {
	if len(c.prev) == 1 && c.prev[0] == c.create.id && len(c.create.creators) > 0 && string(c.create.creators[0]) == c.stateKey {
		return nil // the creator's own first join
	}
	if string(c.sender) != c.stateKey {
		return c.forbidden("nobody can join a room for someone else")
	}
	current := c.membershipOf(c.stateKey)
	if current == ban {
		return c.forbidden("%s is banned from this room", c.sender)
	}
	switch rule := c.joinRule(); {
	case rule == "public":
		return nil
	case current == join || current == invite:
		// Join rules that the room version does not know let in nobody.
		if rule == invite || rule == knock && c.v.Knock || c.needsRestricted(rule) {
			return nil
		}
		return c.forbidden("the join rule %q lets nobody in", printable(rule))
	case c.needsRestricted(rule):
		return c.checkAuthorised()
	}
	return c.forbidden("this room is for invited users only, and %s has no invitation", c.sender)
}

// checkAuthorised is the part of the rule for restricted rooms about the member who vouches for the one who joins.
func (c *candidate) checkAuthorised() error {
	authoriser, ok := str(get(c.content, "join_authorised_via_users_server"))
	if !ok {
		return c.forbidden("this room is for members of certain rooms only, and no member vouches for %s", c.sender)
	}
	if c.membershipOf(authoriser) != join {
		return c.forbidden("%s, who vouches for the join, is not in this room", printable(authoriser))
	}
	levels := NewPowerLevels(c.state.Get(typePowerLevels, ""), c.create)
	if own := levels.User(id.UserID(authoriser)); own < levels.Invite() {
		return c.forbidden("%s, who vouches for the join, may not invite: that needs power level %s, theirs is %s",
			printable(authoriser), levelText(levels.Invite()), levelText(own))
	}
	return nil
}

func (c *candidate) checkInvite() error {
	if third := get(c.content, "third_party_invite"); third != nil {
		return c.checkThirdPartyInvite(third)
	}
	if c.membershipOf(string(c.sender)) != join {
		return c.forbidden("%s is not in this room", c.sender)
	}
	switch c.membershipOf(c.stateKey) {
	case join:
		return c.forbidden("%s is already in this room", printable(c.stateKey))
	case ban:
		return c.forbidden("%s is banned from this room", printable(c.stateKey))
	}
	levels := NewPowerLevels(c.state.Get(typePowerLevels, ""), c.create)
	if own := levels.User(c.sender); own < levels.Invite() {
		return needLevel(levels.Invite(), "invite someone to", own)
	}
	return nil
}

// checkThirdPartyInvite is the rule for who was invited by e-mail address or the like.
// Spec: room version 12 auth rule 5.4.1.
func (c *candidate) checkThirdPartyInvite(third []byte) error {
	if c.membershipOf(c.stateKey) == ban {
		return c.forbidden("%s is banned from this room", printable(c.stateKey))
	}
	signed := get(third, "signed")
	mxid, okID := str(get(signed, "mxid"))
	token, okToken := str(get(signed, "token"))
	if !okID || !okToken {
		return c.forbidden("the third-party invitation does not say whom it is for")
	}
	if mxid != c.stateKey {
		return c.forbidden("the third-party invitation is for someone else")
	}
	invitation := c.state.Get(typeThirdPartyInvite, token)
	if invitation == nil {
		return c.forbidden("the third-party invitation was withdrawn or never made")
	}
	if invitation.sender != c.sender {
		return c.forbidden("the third-party invitation was made by someone else")
	}
	keys := invitationKeys(invitation.content)
	message := appendWithout(nil, signed, "signatures", "unsigned")
	for _, byServer := range members(get(signed, "signatures")) {
		for keyID, value := range members(byServer) {
			if len(keyID) < 8 || string(keyID[:8]) != "ed25519:" {
				continue
			}
			text, _ := str(value)
			sig, err := DecodeBase64(text)
			if err != nil {
				continue
			}
			for _, key := range keys {
				if ed25519.Verify(key, message, sig) {
					return nil
				}
			}
		}
	}
	return c.forbidden("the third-party invitation is not signed by a key that the room knows")
}

// invitationKeys collects the usable public keys of an m.room.third_party_invite.
func invitationKeys(content []byte) []ed25519.PublicKey {
	var keys []ed25519.PublicKey
	add := func(value []byte) {
		text, ok := str(value)
		if !ok {
			return
		}
		if key, err := DecodeBase64(text); err == nil && len(key) == ed25519.PublicKeySize {
			keys = append(keys, key)
		}
	}
	add(get(content, "public_key"))
	for el := range elements(get(content, "public_keys")) {
		add(get(el, "public_key"))
	}
	return keys
}

func (c *candidate) checkLeave() error {
	if string(c.sender) == c.stateKey {
		switch current := c.membershipOf(c.stateKey); {
		case current == join || current == invite || current == knock && c.v.Knock:
			return nil
		case current == ban:
			return c.forbidden("%s is banned from this room", c.sender)
		}
		return c.forbidden("%s is not in this room", c.sender)
	}
	if c.membershipOf(string(c.sender)) != join {
		return c.forbidden("%s is not in this room", c.sender)
	}
	levels := NewPowerLevels(c.state.Get(typePowerLevels, ""), c.create)
	own := levels.User(c.sender)
	if c.membershipOf(c.stateKey) == ban && own < levels.Ban() {
		return needLevel(levels.Ban(), "unban someone in", own)
	}
	if own < levels.Kick() {
		return needLevel(levels.Kick(), "remove someone from", own)
	}
	return c.outranks(levels, own)
}

func (c *candidate) checkBan() error {
	if c.membershipOf(string(c.sender)) != join {
		return c.forbidden("%s is not in this room", c.sender)
	}
	levels := NewPowerLevels(c.state.Get(typePowerLevels, ""), c.create)
	own := levels.User(c.sender)
	if own < levels.Ban() {
		return needLevel(levels.Ban(), "ban someone from", own)
	}
	return c.outranks(levels, own)
}

// outranks asks that the sender be above the user whose membership changes.
func (c *candidate) outranks(levels *PowerLevels, own int64) error {
	if theirs := levels.User(id.UserID(c.stateKey)); theirs >= own {
		return c.forbidden("%s has power level %s, which is not below yours (%s)", printable(c.stateKey), levelText(theirs), levelText(own))
	}
	return nil
}

func (c *candidate) checkKnock() error {
	if rule := c.joinRule(); rule != knock && (rule != "knock_restricted" || !c.v.KnockRestricted) {
		return c.forbidden("this room does not take requests to join")
	}
	if string(c.sender) != c.stateKey {
		return c.forbidden("nobody can ask to join for someone else")
	}
	switch c.membershipOf(c.stateKey) {
	case ban:
		return c.forbidden("%s is banned from this room", c.sender)
	case invite:
		return c.forbidden("%s is already invited to this room", c.sender)
	case join:
		return c.forbidden("%s is already in this room", c.sender)
	}
	return nil
}
