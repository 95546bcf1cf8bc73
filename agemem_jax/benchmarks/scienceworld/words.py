def vocabulary(): return []
