package guess

// Kept is how many dictionaries are in memory.
func Kept() int { return len(dictionaries.lists) }
