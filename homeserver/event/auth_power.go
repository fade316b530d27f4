package event

import (
	"fmt"
	"slices"

	"maunium.net/go/mautrix/id"

	"github.com/moothall/moothall/homeserver/mxerr"
)

// checkPowerLevels is the auth rule for m.room.power_levels. Levels that an event does not name are neither compared nor protected: the
// rules speak of what was added, changed or removed. Spec: room version 12 auth rule 10, and what earlier versions lack of it.
func (c *candidate) checkPowerLevels(current *PowerLevels, own int64) error {
	var next *PowerLevels
	var err error
	if c.built != nil {
		next, err = c.built.PowerLevels()
	} else {
		next, err = c.v.readPowerLevels(c.content)
	}
	if err != nil {
		return err
	}
	if c.v.PrivilegedCreators {
		for _, creator := range c.create.creators {
			if _, ok := next.users[creator]; ok {
				return mxerr.Forbidden(fmt.Sprintf("%s made this room and has every power; power levels cannot name a creator", creator))
			}
		}
	}
	if c.state.Get(typePowerLevels, "") == nil {
		return nil
	}
	for i, name := range levelNames {
		was, is := current.levels[i], next.levels[i]
		switch {
		case current.set[i] == next.set[i] && was == is:
		case current.set[i] && was > own:
			return levelAbove(name, was, own)
		case next.set[i] && is > own:
			return levelAbove(name, is, own)
		}
	}
	if err := checkLevelMap("events", current.events, next.events, own); err != nil {
		return err
	}
	if c.v.NotificationsAuth {
		if err := checkLevelMap("notifications", current.notifications, next.notifications, own); err != nil {
			return err
		}
	}
	if err := checkLevelMap("users", current.users, next.users, own); err != nil {
		return err
	}
	// Of users, also those on the sender's own level are out of reach, but for the sender.
	for _, user := range sortedKeys(current.users) {
		was := current.users[user]
		if is, ok := next.users[user]; user != c.sender && (!ok || is != was) && was >= own {
			return mxerr.Forbidden(fmt.Sprintf("%s has power level %s, which is not below yours (%s)",
				printable(string(user)), levelText(was), levelText(own)))
		}
	}
	return nil
}

// checkLevelMap asks that no level above the sender's own be added, changed or removed.
func checkLevelMap[K id.UserID | string](name string, was, is map[K]int64, own int64) error {
	for _, key := range sortedKeys(was) {
		if n, ok := is[key]; (!ok || n != was[key]) && was[key] > own {
			return levelAbove(name+" "+printable(string(key)), was[key], own)
		}
	}
	for _, key := range sortedKeys(is) {
		if n, ok := was[key]; (!ok || n != is[key]) && is[key] > own {
			return levelAbove(name+" "+printable(string(key)), is[key], own)
		}
	}
	return nil
}

// sortedKeys makes the first complaint the same every time.
func sortedKeys[K id.UserID | string](m map[K]int64) []K {
	keys := make([]K, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func levelAbove(name string, level, own int64) error {
	return mxerr.Forbidden(fmt.Sprintf("the power level %s of %s is above yours (%s)", levelText(level), name, levelText(own)))
}
